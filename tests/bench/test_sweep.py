"""Sweeps in real onnxruntime on the CPU: rows, readings, inputs, and the backend that opens a target."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper
from support import CALIB, DIGITS, EVAL, save

from trtopt.bench import READINGS, gpu
from trtopt.bench.gate import judged, parse_gates
from trtopt.bench.inputs import Sizes, from_data, random
from trtopt.bench.sweep import Plan, sweep
from trtopt.bench.targets import EngineSession, Target, open_onnx
from trtopt.data import open_dataset
from trtopt.engine import Times
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, ModelError, UsageError
from trtopt.events import Progress, silent
from trtopt.graph.file import describe
from trtopt.plan import BenchPlan, DataPlan, SpeedPlan
from trtopt.shapes import parse_shapes, profile
from trtopt.stages import bench as preparing
from trtopt.types import Benchmark, BenchTarget, OnnxModel, ShapeRange, TensorSpec, Timing

QUICK = 0.02


def target(path: Path, name: str = "net", *shapes: str) -> Target:
    inputs = describe(path).inputs
    sizes = Sizes(inputs=inputs, ranges=profile(inputs, parse_shapes(shapes))[0])
    return Target(name=name, sizes=sizes, session=open_onnx(path, "cpu", CudaOptions()))


def swept(targets: list[Target], *batches: int) -> list[tuple[Timing, ...]]:
    plan = Plan(batches=batches, seconds=QUICK, feed=lambda target, batch: random(target.sizes, batch))
    return list(sweep(targets, plan, None, silent))


@pytest.fixture
def two_inputs() -> Sizes:
    ids = TensorSpec(name="ids", dtype="int64", shape=("n", "length"))
    scale = TensorSpec(name="scale", dtype="float32", shape=(1,))
    return Sizes(inputs=(ids, scale), ranges=profile((ids,), parse_shapes(["ids=1x4:2x6:9x8"]))[0])


def test_a_sweep_has_a_row_for_each_target_at_each_batch_size(conv_net: Path) -> None:
    points = swept([target(DIGITS, "digits"), target(conv_net, "conv")], 1, 3)
    assert [(timing.target, timing.batch, timing.copies) for point in points for timing in point] == [
        ("digits", 1, False),
        ("conv", 1, False),
        ("digits", 3, False),
        ("conv", 3, False),
    ]
    for digits, conv in points:
        assert np.isnan(digits.speedup)
        assert conv.speedup == pytest.approx(digits.mean / conv.mean)
        assert conv.bounds["speedup"].low <= conv.speedup <= conv.bounds["speedup"].high


def test_the_numbers_of_a_row_are_consistent(conv_net: Path) -> None:
    ((timing,),) = swept([target(conv_net)], 4)
    assert timing.p50 <= timing.p90 <= timing.p95 <= timing.p99
    assert timing.throughput == pytest.approx(4000 / timing.mean)
    assert timing.iterations >= 8
    assert timing.noise > 0


def test_on_a_cpu_there_are_readings_of_the_process_but_not_of_a_gpu(conv_net: Path) -> None:
    ((timing,),) = swept([target(conv_net)], 1)
    assert set(timing.readings) == {"cpu_cores", "process_memory"}
    assert set(timing.readings) < set(READINGS)
    assert timing.readings["process_memory"] > 20e6
    assert 0 < timing.readings["cpu_cores"] < 1000


def test_progress_counts_the_rounds_of_all_batches(conv_net: Path) -> None:
    events: list[Progress] = []
    plan = Plan(batches=(1, 2), seconds=QUICK, feed=lambda target, batch: random(target.sizes, batch))
    list(sweep([target(conv_net)], plan, None, lambda event: events.append(event)))
    assert [event.done for event in events] == list(range(1, len(events) + 1))
    assert {event.total for event in events} == {len(events)}
    assert [event.note for event in events] == ["batch 1"] * (len(events) // 2) + ["batch 2"] * (len(events) // 2)


class FakeRunner:
    """Fake of the runner for TensorRT engines, which need a GPU: doubles its input and reports 2 ms of computation."""

    where = "TensorRT, a GPU"
    inputs = ("x",)
    device = "cuda"
    weights = 5000

    def __init__(self) -> None:
        self.closed = False

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": 2 * feed["x"]}

    def times(self, feed: Mapping[str, np.ndarray]) -> Times:
        return Times(copy_in=0.5, compute=2.0, copy_out=0.25)

    def close(self) -> None:
        self.closed = True


class FakeNvml:
    """Fake of NVML with a GPU that has no power sensor."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818
        pass

    class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801, N818
        pass

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetName(self, handle: object) -> str:  # noqa: N802
        return "a GPU"

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=3e9)

    def nvmlDeviceGetPowerUsage(self, handle: object) -> float:  # noqa: N802
        raise self.NVMLError("not supported")


def engine(runner: object, name: str = "engine") -> Target:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 2))
    sizes = Sizes(inputs=(spec,), ranges=profile((spec,), ())[0])
    return Target(name=name, sizes=sizes, session=EngineSession(runner, 0.5))


def test_an_engine_has_a_row_without_copies_and_one_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[sweep.__module__], "_ALONE", 0.0)
    monkeypatch.setattr(sys.modules[sweep.__module__], "_READ_FOR", 0.2)
    runner = FakeRunner()
    opened_engine = engine(runner)
    plan = Plan(batches=(4,), seconds=QUICK, feed=lambda target, batch: random(target.sizes, batch))
    ((plain, copied),) = sweep([opened_engine], plan, gpu.Gpu(FakeNvml(), None), silent)
    assert [plain.copies, copied.copies] == [False, True]
    assert (plain.mean, plain.noise) == (2.0, 0.0)  # timed by GPU events
    assert copied.mean != 2.0  # timed by the host's clock
    assert plain.parts == {}
    assert copied.parts == {"copy_in": 0.5, "compute": 2.0, "copy_out": 0.25}
    for timing in (plain, copied):
        assert timing.readings["gpu_utilisation"] == 97
        assert timing.readings["gpu_memory"] == 3e9
        assert "gpu_power" not in timing.readings
    assert opened_engine.session.weights == 5000
    assert opened_engine.session.ways({"x": np.zeros((4, 2), np.float32)}).bytes == 64
    opened_engine.session.close()
    assert runner.closed


def test_a_speedup_between_cpu_and_gpu_includes_the_copies(conv_net: Path) -> None:
    ((host, plain, copied),) = swept([target(conv_net), engine(FakeRunner())], 1)
    assert plain.speedup == pytest.approx(host.mean / plain.mean)
    assert copied.speedup == pytest.approx(host.mean / copied.mean)
    bench_targets = tuple(BenchTarget(name=name, path=conv_net, ran="") for name in ("net", "engine"))
    benchmark = Benchmark(targets=bench_targets, timings=(host, plain, copied))
    assert judged(benchmark, parse_gates("speedup=1e9x"), cpu_counts=False).verdict == "fail"
    ((_, copied, host),) = swept([engine(FakeRunner()), target(conv_net)], 1)
    assert host.speedup == pytest.approx(copied.mean / host.mean)


def test_a_speedup_between_cpu_and_gpu_gets_a_remark(conv_net: Path) -> None:
    host = preparing.Opened(target=target(conv_net), path=conv_net, run_dir=None, takes=None)
    on_gpu = replace(host, target=engine(FakeRunner()))
    (line,) = preparing.remarks([host, on_gpu])
    assert line.startswith("net on the CPU, engine on the GPU: ")
    assert preparing.remarks([host, host]) == preparing.remarks([on_gpu]) == []


def test_the_buffers_of_a_batch_size_are_released_before_the_next_are_allocated() -> None:
    arrays: list[weakref.ref[np.ndarray]] = []

    def feed(target: Target, batch: int) -> dict[str, np.ndarray]:
        assert all(earlier() is None for earlier in arrays)
        array = np.zeros((batch, 2), np.float32)
        arrays.append(weakref.ref(array))
        return {"x": array}

    class CopyingRunner(FakeRunner):
        def submit(self, feed: Mapping[str, np.ndarray]) -> None:
            self._feed = {name: array.copy() for name, array in feed.items()}

    assert (
        len(list(sweep([engine(CopyingRunner())], Plan(batches=(1, 2, 3), seconds=QUICK, feed=feed), None, silent)))
        == 3
    )
    assert len(arrays) == 3


def test_a_gpu_is_read_after_a_target_has_run_alone_for_as_long_as_nvml_averages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules[sweep.__module__], "_ALONE", 0.4)
    monkeypatch.setattr(sys.modules[sweep.__module__], "_READ_FOR", 0.2)
    progress_times, read_times = [], []

    class Nvml(FakeNvml):
        def nvmlDeviceGetUtilizationRates(self, handle: object) -> SimpleNamespace:  # noqa: N802
            read_times.append(time.perf_counter())
            return super().nvmlDeviceGetUtilizationRates(handle)

    plan = Plan(batches=(4,), seconds=QUICK, feed=lambda target, batch: random(target.sizes, batch))
    list(
        sweep([engine(FakeRunner())], plan, gpu.Gpu(Nvml(), None), lambda _: progress_times.append(time.perf_counter()))
    )
    assert read_times[0] - progress_times[-1] >= 0.4  # before the readings without copies
    assert max(np.diff(read_times)) >= 0.4  # before the readings with copies


def test_a_typed_graph_is_timed_without_simulation(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["h"], "down", to=10), helper.make_node("Cast", ["h"], ["y"], "up", to=1)
    session = open_onnx(save(tmp_path / "half.onnx", list(cast), []), "cpu", CudaOptions())
    assert session.where.endswith("CPU; says nothing about the GPU")
    assert session.ways({"x": np.zeros((1, 16, 8, 8), np.float32)}).with_copies is None


def test_a_type_without_cpu_kernels_is_an_error_that_suggests_a_gpu(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], "down", to=16),
        helper.make_node("Conv", ["b", "b"], ["c"], "conv"),
        helper.make_node("Cast", ["c"], ["y"], "up", to=1),
    ]
    with pytest.raises(ModelError, match=r"onnxruntime cannot run bf\.onnx on the CPU: .* --device cuda"):
        open_onnx(save(tmp_path / "bf.onnx", nodes, [], out=("n", "m", "h", "w")), "auto", CudaOptions())


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CPU" in open_onnx(DIGITS, "auto", CudaOptions()).where
    with pytest.raises(EnvironmentUnableError, match="CUDA"):
        open_onnx(DIGITS, "cuda", CudaOptions())


def test_random_inputs_have_the_requested_batch_and_usual_other_sizes(two_inputs: Sizes) -> None:
    feed = random(two_inputs, 5)
    assert {name: (array.shape, array.dtype.name) for name, array in feed.items()} == {
        "ids": ((5, 6), "int64"),
        "scale": ((1,), "float32"),
    }
    assert set(np.unique(feed["ids"])) <= {0, 1}
    assert np.array_equal(feed["ids"], random(two_inputs, 5)["ids"])


def test_the_batch_is_free_or_the_first_size_that_all_inputs_share(two_inputs: Sizes) -> None:
    def fixed(*shapes: tuple[int, ...]) -> int:
        specs = tuple(TensorSpec(name=str(i), dtype="float32", shape=shape) for i, shape in enumerate(shapes))
        return Sizes(inputs=specs, ranges=()).batch

    assert two_inputs.batch == 0
    assert fixed((4, 3), (4, 2, 2)) == 4
    assert fixed((20, 576), (2, 1, 128)) == 1  # time steps and states: one sample
    assert fixed(()) == 1


def test_a_shape_flag_can_fix_the_batch() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 3))
    assert Sizes(inputs=(spec,), ranges=profile((spec,), parse_shapes(["x=4x3"]))[0]).batch == 4


def test_real_samples_are_joined_and_repeated_if_they_are_few() -> None:
    dataset = open_dataset(str(EVAL), describe(DIGITS).inputs)
    few = replace(dataset, ids=dataset.ids[:2])
    feed = from_data(few, 5)["input"]
    assert feed.shape == (5, 1, 28, 28)
    assert np.array_equal(feed[0], feed[2])
    assert not np.array_equal(feed[0], feed[1])


def test_samples_that_cannot_be_joined_are_fed_singly(tmp_path: Path) -> None:
    for name, size in (("a", 4), ("b", 5)):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((1, size), np.float32))
    spec = TensorSpec(name="x", dtype="float32", shape=("n", "m"))
    dataset = open_dataset(str(tmp_path), (spec,))
    assert from_data(dataset, 8)["x"].shape == (1, 4)
    model = OnnxModel(path=tmp_path, digest="", opset=17, inputs=(spec,), outputs=())
    wanted = preparing.Wanted(name="m", onnx=model, engine=None, graph=True, run_dir=None, profile=())
    assert Sizes(inputs=(spec,), ranges=preparing.ranges(wanted, (), dataset)).batch == 1


def opened(path: Path, *, takes: range | None = None, name: str = "net", shapes: tuple[str, ...] = ()):
    return preparing.Opened(target=target(path, name, *shapes), path=path, run_dir=None, takes=takes)


def test_the_default_sweep_is_limited_to_the_batch_sizes_of_an_engine_with_a_remark() -> None:
    int8 = opened(DIGITS, takes=range(1, 33), name="int8")
    assert preparing.batches([opened(DIGITS), int8], ()) == (
        (1, 8, 16, 32),
        ["batch 64 skipped: int8 supports batch 1 to 32"],
    )
    with pytest.raises(UsageError, match="batch 64 is not supported: int8 supports batch 1 to 32"):
        preparing.batches([int8], (8, 64))
    with pytest.raises(UsageError, match="is not supported"):
        preparing.batches([opened(DIGITS, takes=range(100, 200))], ())


def test_a_fixed_batch_applies_to_all_targets() -> None:
    fixed = opened(DIGITS, shapes=("input=4x1x28x28",), name="fixed")
    assert preparing.batches([opened(DIGITS), fixed], ()) == ((4,), [])
    assert preparing.batches([fixed], (4,)) == ((4,), [])
    with pytest.raises(UsageError, match="fixed does not support --batch 1,4: its batch size is fixed at 4"):
        preparing.batches([fixed], (1, 4))
    with pytest.raises(UsageError, match="no batch size in common"):
        preparing.batches([fixed, opened(DIGITS, shapes=("input=2x1x28x28",), name="other")], ())


def test_shapes_come_from_the_data_without_a_flag(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [], ("n", 3, "h", "w"), ("n", 3, "h", "w")
    )
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 5, 7), np.float32))
    wanted = preparing.wanted(path, "m")
    plan = BenchPlan(targets=(path,), run_dir=tmp_path, data=DataPlan(source=str(tmp_path / "x.npy")))
    dataset = preparing.datasets([wanted], plan)["m"]
    assert preparing.ranges(wanted, (), dataset) == (
        ShapeRange(name="x", min=(1, 3, 5, 7), opt=(8, 3, 5, 7), max=(32, 3, 5, 7)),
    )
    with pytest.raises(UsageError, match="dynamic dimensions without sizes"):
        preparing.ranges(wanted, (), None)


def test_images_are_preprocessed_by_their_recipe() -> None:
    wanted = preparing.wanted(DIGITS, "digits")
    plan = BenchPlan(targets=(DIGITS,), run_dir=Path(), data=DataPlan(source=str(CALIB)), speed=SpeedPlan(device="cpu"))
    datasets = preparing.datasets([wanted], plan)
    assert preparing.feed(datasets, target(DIGITS, "digits"), 3)["input"].shape == (3, 1, 28, 28)


@pytest.mark.parametrize(
    ("index", "variable", "expected"),
    [(0, None, 0), (1, "", 1), (0, "3,1", 3), (1, "3,1", 1), (0, "GPU-8a1b,2", "GPU-8a1b"), (5, "3", 5)],
)
def test_cuda_and_nvml_number_gpus_differently(index: int, variable: str | None, expected: int | str) -> None:
    assert gpu.visible(index, variable) == expected


def test_the_reason_why_nvml_does_not_work_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise FakeNvml.NVMLError("Driver Not Loaded")

    class Broken(FakeNvml):
        nvmlInit = staticmethod(init)  # noqa: N815

    monkeypatch.setitem(sys.modules, "pynvml", Broken())
    with pytest.raises(EnvironmentUnableError, match="NVML does not work here: Driver Not Loaded"):
        gpu.open_gpu()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=r"pip install nvidia-ml-py"):
        gpu.open_gpu()


def test_no_gpu_is_read_if_nvml_and_cuda_may_number_them_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoGpus(FakeNvml):
        names = ("display card", "fast one")

        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            return 2

        def nvmlDeviceGetName(self, handle: object) -> str:  # noqa: N802
            return self.names[handle] if isinstance(handle, int) else "by its id"

    nvml = TwoGpus()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    with pytest.raises(EnvironmentUnableError, match=r"display card, fast one, .*\. Set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        gpu.open_gpu()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert gpu.open_gpu(1).name == "fast one"
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a1b")
    assert gpu.open_gpu().name == "by its id"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvml.names = ("the same", "the same")
    assert gpu.open_gpu(1).name == "the same"


def test_the_name_of_the_gpu_is_added_if_the_session_lacks_it() -> None:
    device = gpu.Gpu(FakeNvml(), None)
    unnamed, named = EngineSession(FakeRunner(), 0.5), EngineSession(FakeRunner(), 0.5)
    unnamed.where = "onnxruntime, CUDA"
    assert preparing.where(unnamed, device) == "onnxruntime, CUDA, a GPU"
    assert preparing.where(named, device) == "TensorRT, a GPU"
    assert preparing.where(unnamed, None) == "onnxruntime, CUDA"
    assert preparing.where(open_onnx(DIGITS, "cpu", CudaOptions()), device).endswith("nothing about the GPU")
