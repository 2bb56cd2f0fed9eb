"""The runner on a real GPU, with a kernel instead of a TensorRT engine."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine.kernels import Scaling, resident, spin_for

from trtopt.engine.cuda.device import Device, open_device
from trtopt.engine.runner.engine import EngineRunner
from trtopt.errors import OutOfMemoryError

pytestmark = pytest.mark.gpu


def runner(package: str, *, width: int = 3, milliseconds: float = 0, streams: int = 2) -> EngineRunner:
    device = open_device(package=package)
    cycles = spin_for(device, milliseconds) if milliseconds else np.int64(0)
    return EngineRunner(device, Scaling(device, width, cycles), streams=streams)


def test_results_are_correct_for_every_shape_with_and_without_replay(package: str) -> None:
    random = np.random.default_rng(0)
    with runner(package) as opened:
        for rows in (1, 64, 5, 1, 64, 5, 1, 64, 5):
            x = random.normal(size=(rows, 3)).astype(np.float32)
            assert np.array_equal(opened.run({"x": x})["y"], x * np.float32(3))
        assert ("does not support CUDA graphs" in opened.no_graphs) == (package == "pycuda")


def test_runs_in_flight_are_independent_and_in_order(package: str) -> None:
    with runner(package, milliseconds=1, streams=4) as opened:
        inputs = [np.full((2, 3), index, np.float32) for index in range(40)]
        outputs = []
        for x in inputs:
            if opened.in_flight == 4:
                outputs.append(opened.collect().outputs["y"])
            opened.submit({"x": x})
        while opened.in_flight:
            outputs.append(opened.collect().outputs["y"])
        assert np.array_equal(np.stack(outputs), np.stack(inputs) * 3)


def test_one_stream_copies_while_another_computes(package: str) -> None:
    width, runs = 1 << 19, 20  # 128 MiB at 64 rows
    milliseconds, parts = {}, ""
    for streams in (1, 3):
        with runner(package, width=width, milliseconds=3, streams=streams) as opened:
            for _ in range(2 * streams):  # each stream once without capture, once with it
                opened.submit(opened.stage({"x": (64, width)}))
                ran = opened.collect(copy=False)
            took = ran.times
            parts = f"in {took.copy_in:.1f}, compute {took.compute:.1f}, out {took.copy_out:.1f} ms"
            began = time.perf_counter()
            for _ in range(runs):
                if opened.in_flight == streams:
                    opened.collect(copy=False)
                opened.submit(opened.stage({"x": (64, width)}))
            while opened.in_flight:
                opened.collect(copy=False)
            milliseconds[streams] = (time.perf_counter() - began) / runs * 1e3
    print(f"a run alone: {parts}; {milliseconds[1]:.2f} ms per run on 1 stream, {milliseconds[3]:.2f} ms on 3")
    assert milliseconds[3] < 0.7 * milliseconds[1]


def test_times_are_those_of_the_gpu(package: str) -> None:
    with runner(package, milliseconds=10) as opened:
        for _ in range(3):
            opened.submit({"x": np.ones((1, 3), np.float32)})
            ran = opened.collect()
        print(ran.times)
        assert 9 < ran.times.compute < 12
        assert ran.times.copy_in < 1
        assert ran.times.copy_out < 1


def test_a_thousand_runners_opened_run_and_closed_keep_memory_flat(device: Device, package: str) -> None:
    x = np.ones((4, 3), np.float32)

    def once() -> None:
        with runner(package) as opened:
            opened.run({"x": x})
            opened.submit({"x": x})

    for _ in range(50):
        once()
    free, held = device.free_bytes(), resident()
    for _ in range(1000):
        once()
    grown = resident() - held
    print(f"1,000 runners: device {free - device.free_bytes():+d} bytes, host {grown / 1024:+.0f} KiB")
    assert device.free_bytes() == free
    assert grown < 4 << 20


def test_too_little_memory_for_the_largest_shapes_is_an_error_that_leaks_nothing(device: Device, package: str) -> None:
    free = device.free_bytes()
    with pytest.raises(OutOfMemoryError):
        runner(
            package, width=int(0.6 * device.info.total_bytes) // 256
        )  # the input takes 60 % of the memory, and the output does not fit
    assert device.free_bytes() >= free
