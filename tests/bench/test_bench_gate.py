"""Gates on speed: their syntax, and verdicts that respect the uncertainty of the measurement."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trtopt.bench.gate import Gate, check, judged, parse_gates, written
from trtopt.errors import UsageError
from trtopt.types import Benchmark, BenchTarget, Interval, Timing


def timing(target: str, batch: int = 1, *, copies: bool = False, mean: float = 4.0, speedup: float = 0.0) -> Timing:
    """Return a timing with a mean of 4 ms +- 5 % and a 99th percentile of 6 ms without an upper bound."""
    bounds = {"mean": Interval(low=0.95 * mean, high=1.05 * mean), "p99": Interval(low=5.5, high=math.inf)}
    if speedup:
        bounds["speedup"] = Interval(low=speedup - 0.1, high=speedup + 0.1)
    return Timing(
        target=target,
        batch=batch,
        copies=copies,
        iterations=100,
        mean=mean,
        p50=mean,
        p90=mean,
        p95=mean,
        p99=6.0,
        noise=0.06,
        throughput=batch * 1000 / mean,
        bounds=bounds,
        speedup=speedup or math.nan,
    )


def benchmark(*timings: Timing, complete: bool = True, on_cpu: tuple[str, ...] = ()) -> Benchmark:
    names = dict.fromkeys(timing.target for timing in timings)
    targets = tuple(
        BenchTarget(name=name, path=Path(name), ran="", device="cpu" if name in on_cpu else "cuda") for name in names
    )
    return Benchmark(targets=targets, timings=timings, complete=complete)


def verdicts(gates: str, benchmark: Benchmark) -> list[tuple[str, str]]:
    results = judged(benchmark, parse_gates(gates), cpu_counts=False).gates
    return [(result.output, result.verdict) for result in results]


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("latency_p99=5ms", Gate(metric="latency_p99", limit=5.0)),
        ("latency_mean <= 0.5 s", Gate(metric="latency_mean", limit=500.0)),
        ("latency_p50@8=250us", Gate(metric="latency_p50", limit=0.25, batch=8)),
        ("throughput@64>=1e4", Gate(metric="throughput", limit=1e4, batch=64)),
        ("throughput=1000/s", Gate(metric="throughput", limit=1000.0)),
        ("speedup=1.5x", Gate(metric="speedup", limit=1.5)),
        ("speedup=2", Gate(metric="speedup", limit=2.0)),
    ],
)
def test_a_gate_is_parsed(text: str, gate: Gate) -> None:
    assert parse_gates(text) == (gate,)
    assert parse_gates(written([gate])) == (gate,)


def test_a_blank_text_gives_no_gates_and_a_list_several() -> None:
    assert parse_gates("  ") == ()
    assert [gate.metric for gate in parse_gates("latency_p99=5ms, speedup=1.5x")] == ["latency_p99", "speedup"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency_p99", "Write METRIC=LIMIT, such as latency_p99=5ms"),
        ("latency_p98=5ms", "Did you mean latency_p9"),
        ("top1=1%", "Choose from latency_mean, "),
        ("latency_p99=5", "it must be one of ms, us, µs, s. Write latency_p99=5ms"),
        ("latency_p99=5x", "'x' is not one of ms, us, µs, s"),
        ("latency_p99=fast", "'fast' is not a positive number"),
        ("latency_p99=-5ms", "'-5ms' is not a positive number"),
        ("latency_p99=0ms", "it must be above 0 and finite"),
        ("latency_p99=1e999ms", "it must be above 0 and finite"),
        ("latency_p99>=5ms", "latency_p99 must be at most its limit"),
        ("speedup<=2", "speedup must be at least its limit"),
        ("speedup=50%", "'%' is not one of x"),
        ("latency_p99@=5ms", "the batch size '' after the @: it must be a positive integer"),
        ("throughput@10.5=3", "the batch size '10.5' after the @: it must be a positive integer"),
        ("latency_p99@0=5ms", "the batch size '0' after the @"),
        ("latency_p99=5ms,", "does not parse"),
    ],
)
def test_an_invalid_gate_is_rejected_with_a_fix(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_gates(text)
    assert message in str(error.value)


def test_gates_that_cannot_be_judged_are_rejected_before_anything_is_measured() -> None:
    with pytest.raises(UsageError, match=r"latency_p99@16: batch size 16 is not measured: the measured .* 1, 8"):
        check(parse_gates("latency_p99@16=5ms"), (1, 8), 1)
    with pytest.raises(UsageError, match="speedup needs two targets"):
        check(parse_gates("speedup=2"), (1, 8), 1)
    check(parse_gates("speedup=2,latency_p99@8=5ms"), (1, 8), 2)


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ("latency_mean=4.3ms", "pass"),
        ("latency_mean=4.1ms", "inconclusive"),
        ("latency_mean=3.9ms", "inconclusive"),
        ("latency_mean=3.7ms", "fail"),
        ("latency_p99=7ms", "inconclusive"),  # no upper bound
        ("latency_p99=5ms", "fail"),
        ("throughput=230", "pass"),
        ("throughput=245", "inconclusive"),
        ("throughput=270", "fail"),
        ("speedup=1.3", "pass"),
        ("speedup=1.45", "inconclusive"),
        ("speedup=1.7", "fail"),
    ],
)
def test_a_limit_within_the_confidence_interval_is_inconclusive(gate: str, verdict: str) -> None:
    judgement = judged(benchmark(timing("fp32"), timing("int8", speedup=1.5)), parse_gates(gate), cpu_counts=False)
    assert judgement.verdict == verdict
    (result,) = judgement.gates
    assert result.low < result.value < result.high
    assert ("--seconds" in result.reason) == (verdict == "inconclusive")


def test_a_gate_applies_to_the_last_target_at_every_batch_size_or_at_the_named_one() -> None:
    measured = benchmark(
        timing("fp32", 1), timing("int8", 1), timing("fp32", 8, mean=99.0), timing("int8", 8, mean=8.0)
    )
    assert verdicts("latency_mean=5ms", measured) == [("int8, batch 1", "pass"), ("int8, batch 8", "fail")]
    assert verdicts("latency_mean@8=9ms", measured) == [("int8, batch 8", "pass")]


def test_on_a_gpu_the_time_includes_the_copies() -> None:
    measured = benchmark(timing("int8"), timing("int8", copies=True, mean=6.0))
    assert verdicts("latency_mean=5ms", measured) == [("int8, batch 1", "fail")]


def test_without_gates_the_verdict_is_unchecked() -> None:
    assert judged(benchmark(timing("a")), (), cpu_counts=False).verdict == "unchecked"


def test_a_sweep_that_ended_early_does_not_pass() -> None:
    judgement = judged(benchmark(timing("a"), complete=False), parse_gates("latency_mean=9ms"), cpu_counts=False)
    assert judgement.verdict == "inconclusive"
    assert [(result.metric, result.verdict) for result in judgement.gates] == [
        ("latency_mean", "pass"),
        ("complete", "inconclusive"),
    ]


@pytest.mark.parametrize("gate", ["latency_mean=9ms", "latency_mean=1ms", "throughput=1", "speedup=1.3", "speedup=9"])
def test_the_cpu_is_no_evidence_about_a_gpu_unless_the_user_asked_for_it(gate: str) -> None:
    timed = benchmark(timing("fp32"), timing("int8", speedup=1.5), on_cpu=("fp32", "int8"))
    (assumed,) = judged(timed, parse_gates(gate), cpu_counts=False).gates
    assert assumed.verdict == "inconclusive"
    assert " on the CPU, must be at " in assumed.reason
    assert "--device cpu, or run this on the GPU" in assumed.reason
    (asked,) = judged(timed, parse_gates(gate), cpu_counts=True).gates
    assert asked.verdict in ("pass", "fail")
    assert " on the CPU, 95 % bounds" in asked.reason
    assert "--device" not in asked.reason


def test_a_speedup_over_a_target_on_the_cpu_is_no_evidence_but_a_latency_on_the_gpu_is() -> None:
    timed = benchmark(timing("fp32"), timing("int8", speedup=9.0), on_cpu=("fp32",))
    speedup, latency = judged(timed, parse_gates("speedup=2,latency_mean=9ms"), cpu_counts=False).gates
    assert (speedup.verdict, latency.verdict) == ("inconclusive", "pass")
    assert "partly on the CPU" in speedup.reason
    assert "CPU" not in latency.reason
