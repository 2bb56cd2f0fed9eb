"""Which exit code a report has: the truth table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from report.reports import COMPARISON, FAILED, PASSED, SEVERAL, UNCHECKED

from trtopt.errors import BuildError, EnvironmentUnableError, InterruptedSweepError, TrtoptError
from trtopt.types import Benchmark, BenchTarget, GateResult, Report, Verdict
from trtopt.verdict import blocks, drifted, exit_code

UNABLE = EnvironmentUnableError("no TensorRT here")


def gate(verdict: Verdict, *, default: bool = False) -> GateResult:
    return GateResult(output="y", metric="top1", value=0.0, limit=1.0, verdict=verdict, reason="", default=default)


def report(*gates: GateResult, allow: bool = False) -> Report:
    verdicts = {each.verdict for each in gates}
    found: Verdict = "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"
    comparison = replace(COMPARISON, gates=gates, verdict=found)
    return replace(PASSED, verdict=found, comparison=comparison, allow_inconclusive=allow)


PASS, FAIL, OPEN = gate("pass"), gate("fail"), gate("inconclusive")
FAIL_BY_DEFAULT, OPEN_BY_DEFAULT = gate("fail", default=True), gate("inconclusive", default=True)


@pytest.mark.parametrize(("limit", "helps"), [(97.0, True), (99.0, False)])
def test_a_higher_precision_does_not_help_where_fp32_itself_fails(limit: float, helps: bool) -> None:
    output = replace(COMPARISON.outputs[0], output="y", values={"accuracy_fp32": 98.0, "accuracy": 96.0})
    failed = replace(FAIL, metric="accuracy", value=96.0, limit=limit)
    assert drifted([replace(COMPARISON, outputs=(output,), gates=(failed,))]) == helps


@pytest.mark.parametrize(
    ("gates", "code", "allowed", "unbuilt"),
    [
        ((PASS,), 0, 0, 3),
        ((OPEN_BY_DEFAULT,), 0, 0, 3),
        ((PASS, OPEN_BY_DEFAULT), 0, 0, 3),
        ((OPEN,), 4, 0, 4),
        ((PASS, OPEN), 4, 0, 4),
        ((OPEN_BY_DEFAULT, OPEN), 4, 0, 4),
        ((FAIL,), 1, 1, 1),
        ((FAIL_BY_DEFAULT,), 1, 1, 1),
        ((FAIL_BY_DEFAULT, OPEN), 1, 1, 1),
        ((FAIL, OPEN_BY_DEFAULT), 1, 1, 1),
    ],
)
def test_the_gates_decide_and_then_whether_an_engine_was_built(
    gates: tuple[GateResult, ...], code: int, allowed: int, unbuilt: int
) -> None:
    assert exit_code(report(*gates)) == code
    assert exit_code(report(*gates, allow=True)) == allowed
    assert exit_code(report(*gates), UNABLE) == unbuilt


@pytest.mark.parametrize("error", [BuildError("refused"), InterruptedSweepError("interrupted")])
def test_a_run_that_an_error_or_ctrl_c_ended_has_the_code_of_that(error: TrtoptError) -> None:
    assert exit_code(report(FAIL), error) == error.exit_code


def test_without_a_comparison_the_exit_code_is_0() -> None:
    assert exit_code(UNCHECKED) == 0
    assert exit_code(UNCHECKED, UNABLE) == 3


def test_a_verdict_that_rests_on_no_gate_fails() -> None:
    assert exit_code(replace(report(), verdict="fail")) == 1


def test_one_inconclusive_candidate_of_several_is_enough() -> None:
    first, second = SEVERAL.candidates
    rows = (first, replace(second, comparison=replace(COMPARISON, gates=(OPEN,), verdict="inconclusive")))
    assert exit_code(replace(SEVERAL, verdict="inconclusive", candidates=rows)) == 4
    assert exit_code(SEVERAL) == 1


def test_an_inconclusive_gate_of_a_benchmark_counts() -> None:
    target = BenchTarget(name="m", path=Path("m.onnx"), ran="CPU")
    benchmark = Benchmark(targets=(target,), timings=(), gates=(OPEN,), verdict="inconclusive")
    timed = replace(PASSED, command="bench", verdict="inconclusive", comparison=None, benchmark=benchmark)
    assert exit_code(timed) == 4
    assert exit_code(replace(timed, allow_inconclusive=True)) == 0


def test_what_blocks_is_what_decides_the_exit_code() -> None:
    assert [blocks(report(each), each) for each in (PASS, FAIL, OPEN, FAIL_BY_DEFAULT, OPEN_BY_DEFAULT)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not blocks(report(OPEN, allow=True), OPEN)
    assert blocks(FAILED, replace(FAIL, value=math.nan))
