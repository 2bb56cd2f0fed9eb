"""The largest batch: the search on synthetic limits, and in real processes compared with an exhaustive search."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from support import DIGITS, save

from trtopt.bench import memory, probe
from trtopt.bench.gpu import resident
from trtopt.bench.inputs import Sizes
from trtopt.bench.memory import Limits
from trtopt.bench.probe import Question
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, ModelError
from trtopt.events import silent
from trtopt.graph.file import describe
from trtopt.shapes import parse_shapes, profile
from trtopt.types import BatchProbe


def question(path: Path, *shapes: str) -> Question:
    inputs = describe(path).inputs
    sizes = Sizes(inputs=inputs, ranges=profile(inputs, parse_shapes(shapes))[0])
    return Question(path=path, engine=None, sizes=sizes, device="cpu", batch=1, limit=0)


@pytest.fixture(scope="module")
def hungry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a network whose activations take several MB per sample, and whose weights are tiny."""
    weights = [numpy_helper.from_array(np.full((16, 1, 3, 3), 0.1, np.float32), "w")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1] * 4),
        helper.make_node("Sin", ["a"], ["b"], "sin"),
        helper.make_node("ReduceSum", ["b"], ["y"], "sum"),
    ]
    return save(tmp_path_factory.mktemp("hungry") / "net.onnx", nodes, weights, ("n", 1, 256, 256), (1, 1, 1, 1))


def up_to(limit: int, log: list[int] | None = None):
    def try_batch(batch: int) -> BatchProbe:
        if log is not None:
            log.append(batch)
        return BatchProbe(batch=batch, memory=100 + batch, latency=1.0, failed="" if batch <= limit else "too large")

    return try_batch


def best(probes: list[BatchProbe]) -> int:
    return max((probe.batch for probe in probes if not probe.failed), default=0)


@given(st.integers(0, 70000))
def test_the_search_ends_within_five_percent_of_the_limit(limit: int) -> None:
    log: list[int] = []
    largest = best(memory.search(up_to(limit, log), range(1, memory.MOST + 1)))
    true = min(limit, memory.MOST)
    assert largest <= true <= largest + max(0, largest // 20)
    assert len(log) <= 25
    assert len(set(log)) == len(log)


@given(st.integers(1, 20), st.integers(20, 100), st.integers(0, 100))
def test_the_search_stays_within_the_batch_sizes_of_an_engine(least: int, most: int, limit: int) -> None:
    log: list[int] = []
    memory.search(up_to(limit, log), range(least, most + 1))
    assert min(log) == least
    assert max(log) <= most


def test_one_batch_above_the_limit_is_tried_and_reported_if_it_fits() -> None:
    def odd(batch: int) -> BatchProbe:
        return replace(up_to(10)(batch), failed="") if batch == 13 else up_to(10)(batch)

    tried = memory.search(odd, range(1, 100))
    assert memory._doubts(tried) == ("batch 13 fits but 11 did not: the largest batch may be a different one",)
    assert memory._doubts(memory.search(up_to(10), range(1, 100))) == ()


def test_memory_that_decreases_with_the_batch_is_reported() -> None:
    probes = [BatchProbe(batch=b, memory=m, latency=1.0) for b, m in ((1, 100), (2, 200), (4, 150))]
    assert memory._doubts(probes) == (
        "batch 4 takes less memory than a smaller one: the largest batch may be a different one",
    )


def test_latency_that_decreases_with_the_batch_is_reported_only_if_it_is_limited() -> None:
    probes = [BatchProbe(batch=b, memory=b, latency=t) for b, t in ((1, 5.0), (2, 9.0), (4, 7.0))]
    assert memory._doubts(probes) == ()
    (doubt,) = memory._doubts(probes, timed=True)
    assert doubt == "batch 4 takes less time than a smaller one: the largest batch may be a different one"


def test_latency_that_decreases_above_the_limit_is_reported() -> None:
    latencies = {128: 16.8, 132: 56.4, 192: 28.9}  # measured with a ResNet-50 on an H200
    tried = [
        BatchProbe(batch=batch, memory=batch, latency=latency, failed="too long" if latency > 20 else "")
        for batch, latency in latencies.items()
    ]
    (line,) = memory._doubts(tried, timed=True)
    assert line == "batch 192 takes less time than a smaller one: the largest batch may be a different one"


def test_the_largest_batch_is_that_of_an_exhaustive_search(hungry: Path) -> None:
    asked = question(hungry)
    cap = probe.ask(asked, 60).memory + 100 * 2**20
    limit, where, doubts = memory.largest(asked, Limits(memory=cap), None, silent)
    assert limit.limited_by == "memory"
    assert limit.total <= cap
    assert "CPU" in where
    assert doubts == ()
    batch, true = limit.batch, limit.batch
    while not probe.ask(replace(asked, batch=batch + 1, limit=cap), 60).failed:
        batch = true = batch + 1
    assert limit.batch >= 0.9 * true
    assert true > 4


def test_memory_is_split_into_weights_and_inputs_and_outputs(hungry: Path) -> None:
    asked = question(hungry)
    cap = probe.ask(asked, 60).memory + 40 * 2**20
    limit, _, _ = memory.largest(asked, Limits(memory=cap), None, silent)
    assert limit.weights == 16 * 9 * 4
    assert limit.inputs_outputs == limit.batch * 256 * 256 * 4 + 4
    assert limit.base < limit.total <= cap
    # A 16-channel tensor takes 4 MiB per sample, and onnxruntime keeps two or more of them at a time.
    assert 4 * 2**20 < limit.bytes_per_sample < 32 * 2**20
    assert limit.bytes_fixed + limit.batch * limit.bytes_per_sample == pytest.approx(limit.total, rel=0.2)


def test_a_batch_above_the_latency_limit_does_not_fit(hungry: Path) -> None:
    limit, _, _ = memory.largest(question(hungry), Limits(latency=1e-6), None, silent)
    assert (limit.batch, limit.limited_by) == (0, "latency")
    assert "batch 1: takes" in limit.why


def test_a_batch_that_the_model_rejects_ends_the_search(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, -1, 8], np.int64), "shape")
    five = numpy_helper.from_array(np.array([0] * 5, np.float32), "five")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["a"], "mean", axes=[1, 2, 3], keepdims=0),
        helper.make_node("Shape", ["a"], ["n"], "count"),
        helper.make_node("Gather", ["five", "last"], ["g"], "gather"),  # index 5 is out of range
        helper.make_node("Sub", ["n", "one"], ["last"], "less"),
        helper.make_node("Reshape", ["x", "shape"], ["r"], "reshape"),
        helper.make_node("Add", ["r", "g"], ["y"], "add"),
    ]
    nodes = [nodes[i] for i in (0, 1, 3, 2, 4, 5)]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    path = save(tmp_path / "net.onnx", nodes, [shape, five, one], ("n", 1, 1, 8), (1, "m", 8))
    limit, _, _ = memory.largest(question(path), Limits(memory=2 * 2**30), None, silent)
    assert (limit.batch, limit.limited_by) == (5, "refused")
    assert "batch 6: cannot be run: " in limit.why


def test_a_process_that_exceeds_the_memory_limit_is_killed(hungry: Path) -> None:
    answer = probe.ask(replace(question(hungry), batch=8000, limit=300 * 2**20, host=300 * 2**20), 60)
    assert answer.failed == "exceeds the memory limit"
    assert answer.memory < 600 * 2**20  # its inputs alone would take 2 GB


def test_a_process_that_exceeds_the_timeout_is_killed() -> None:
    answer = probe.ask(question(DIGITS), 0.0)
    assert answer.reason == "time"
    assert answer.failed == "did not finish within 0 s"


def test_an_error_of_the_model_itself_is_raised_unchanged(tmp_path: Path) -> None:
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(DIGITS.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"onnxruntime cannot run torn\.onnx on the CPU"):
        probe.ask(replace(question(DIGITS), path=torn), 60)


def test_without_a_gpu_it_is_an_error_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises((EnvironmentUnableError, MissingDependencyError)):
        probe.ask(replace(question(DIGITS), device="cuda"), 60)


def test_weights_are_counted_by_shape_and_type(conv_net: Path) -> None:
    assert memory.weights(conv_net) == 2 * 16 * 16 * 3 * 3 * 4


def test_available_memory_is_part_of_the_machines() -> None:
    assert 0 < memory.available() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_control_group_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("30000000\n")
    (tmp_path / "memory.max").write_text("50000000\n")
    assert memory.available() == pytest.approx(18_000_000, rel=0.01)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > 18_000_000


def test_resident_memory_follows_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "x = bytearray(50_000_000); input()"], stdin=subprocess.PIPE) as child:
        grown = 0
        while grown < 50_000_000 and child.poll() is None:
            grown = resident(child.pid)
        assert grown < 100_000_000
        child.kill()
    assert resident(child.pid) == 0
