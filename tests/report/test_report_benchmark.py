"""Tests of benchmark tables: only columns with values, and untrusted names without effect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report.reports import COMPARED, NASTY

from trtopt.report import render
from trtopt.report.page import benchmark
from trtopt.types import BatchLimit, BatchProbe, Benchmark, BenchTarget, GateResult, Interval, Timing

FP32 = Timing(
    target="model.onnx",
    batch=8,
    copies=False,
    iterations=600,
    mean=4.56789,
    p50=4.5,
    p90=4.75,
    p95=12.25,
    p99=1234.5,
    noise=0.0042,
    throughput=1751.4,
    readings={"cpu_cores": 1.25, "process_memory": 157e6},
    bounds={"mean": Interval(low=4.5, high=4.6)},
)
FP16 = replace(FP32, target="out/fp16", mean=0.5, speedup=9.1357)
ON_GPU = replace(
    FP16, copies=True, readings={"gpu_utilisation": 98.0, "gpu_memory": 3.25e9, "gpu_power": 431.7, "cpu_cores": 1.0}
)
TARGETS = (
    BenchTarget(name="model.onnx", path=Path("model.onnx"), ran="onnxruntime, CPU; says nothing about the GPU"),
    BenchTarget(name="out/fp16", path=Path("out/fp16/typed.onnx"), ran="onnxruntime, CUDA, TF32 off"),
)
LIMIT = BatchLimit(
    target="model.onnx",
    device="cpu",
    batch=24,
    limited_by="memory",
    why="batch 25: it takes more than the limit",
    memory_limit=200_000_000,
    latency_limit=20.0,
    total=195_000_000,
    base=55_000_000,
    weights=1_500_000,
    inputs_outputs=500_000,
    bytes_fixed=60_000_000,
    bytes_per_sample=5_600_000.0,
    probes=(
        BatchProbe(batch=24, memory=195_000_000, latency=12.0),
        BatchProbe(batch=25, memory=0, latency=float("nan"), failed="it takes more than the limit"),
    ),
)


def test_without_a_gpu_there_are_no_columns_of_one() -> None:
    latency, meanwhile = benchmark.tables(Benchmark(targets=TARGETS[:1], timings=(FP32,)))
    assert latency.head == ("target", "batch", "mean", "±", "p50", "p90", "p95", "p99", "samples/s", "runs")
    assert latency.rows == (("model.onnx", "8", "4.57", "0.42 %", "4.50", "4.75", "12.2", "1,234", "1,751", "600"),)
    assert (meanwhile.head, meanwhile.rows) == (
        ("target", "batch", "CPU", "memory"),
        (("model.onnx", "8", "1.2 cores", "157 MB"),),
    )


def test_with_a_gpu_and_two_targets_there_are_and_what_was_not_read_is_empty() -> None:
    latency, meanwhile = benchmark.tables(Benchmark(targets=TARGETS, timings=(FP32, ON_GPU)))
    assert set(latency.head) >= {"copies", "speedup"}
    assert latency.rows[1][latency.head.index("speedup")] == "9.14x"
    assert latency.rows[0][latency.head.index("speedup")] == ""
    assert meanwhile.head == ("target", "batch", "copies", "CPU", "memory", "GPU", "GPU memory", "power")
    assert meanwhile.rows[0][-3:] == ("", "", "")
    assert meanwhile.rows[1][2:] == ("with", "1.0 cores", "", "98 %", "3.25 GB", "432 W")


def test_the_largest_batch_says_what_memory_is() -> None:
    found = Benchmark(targets=TARGETS[:1], timings=(), limit=LIMIT)
    assert dict(benchmark.facts(found)) == {
        "model.onnx": "onnxruntime, CPU; says nothing about the GPU",
        "largest batch": "24; batch 25: it takes more than the limit",
        "limits": "200 MB of memory and 20 ms",
        "memory needed": "195 MB: 1.50 MB weights, 500 kB inputs and outputs, 138 MB activations and workspace, "
        "55.0 MB used by the process before the model",
        "other batches": "about 60.0 MB plus 5.60 MB per sample",
    }
    (table,) = benchmark.tables(found)
    assert table.rows == (
        ("24", "195 MB", "12.0", "fits"),
        ("25", "", "", "does not fit: it takes more than the limit"),
    )


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.012"), (1.0, "1.00"), (99.94, "99.9"), (1234.5, "1,234"), (float("nan"), "")]
)
def test_numbers_have_about_three_digits(value: float, shown: str) -> None:
    assert benchmark.number(value) == shown


@pytest.mark.parametrize("format", ["text", "markdown", "junit", "github", "json"])
def test_a_hostile_name_breaks_no_format(format: str) -> None:
    gate = GateResult(output=NASTY, metric="throughput", value=1.0, limit=2.0, verdict="fail", reason=NASTY)
    target = BenchTarget(name=NASTY, path=Path("m.onnx"), ran=NASTY)
    hostile = Benchmark(
        targets=(target,),
        timings=(replace(FP32, target=NASTY),),
        gates=(gate,),
        verdict="fail",
        limit=replace(LIMIT, why=NASTY),
    )
    report = replace(COMPARED, command="bench", verdict="fail", comparison=None, benchmark=hostile)
    shown = render(format, report)
    if format in ("text", "markdown"):
        assert "\x1b" not in shown
    if format == "junit":
        ElementTree.fromstring(shown)
    if format == "markdown":
        assert "<i>" not in shown
