"""Tests of the one-line verdict: what failed or is inconclusive, what would settle it, and limits of the evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report.reports import (
    ALLOWED,
    COMPARED,
    COMPARISON,
    EMPTY,
    FAILED,
    INCONCLUSIVE,
    JUMPED,
    NO_ENGINE,
    OPEN,
    PASSED,
    SEVERAL,
    UNCHECKED,
)

from trtopt.report.page.headline import verdict
from trtopt.types import GateResult, Report

CALIBRATED = "measured on the calibration samples: no evidence for unseen data"


def inconclusive(*gates: GateResult, samples: int = 200) -> Report:
    comparison = replace(COMPARISON, verdict="inconclusive", gates=gates, samples=samples)
    return replace(PASSED, verdict="inconclusive", comparison=comparison)


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (PASSED, "PASS: 1/1 gates passed"),
        (FAILED, "FAIL: boxes:0: sqnr; equal"),
        (JUMPED, "FAIL: boxes:0: sqnr; equal; first divergent layer: body"),
        (SEVERAL, "FAIL: out/int8: boxes:0: sqnr"),
        (EMPTY, "FAIL: no gate was evaluated"),
        (UNCHECKED, "UNCHECKED: no comparison was requested"),
        (NO_ENGINE, "PASS: 1/1 gates passed (no engine was built)"),
        (replace(NO_ENGINE, command="compare"), "PASS: 1/1 gates passed"),
    ],
)
def test_the_verdict_is_one_line(report: Report, line: str) -> None:
    assert verdict(report) == line


def test_the_first_failed_gates_are_named_and_the_others_counted() -> None:
    assert FAILED.comparison is not None
    gates = tuple(replace(FAILED.comparison.gates[1], output=str(i)) for i in range(7))
    report = replace(FAILED, comparison=replace(FAILED.comparison, gates=gates))
    assert verdict(report) == "FAIL: 0: sqnr; 1: sqnr; 2: sqnr; 3: sqnr; 4: sqnr; and 2 more"


def test_an_inconclusive_default_gate_says_that_it_fails_nothing_and_how_to_make_it_decide() -> None:
    assert verdict(inconclusive(replace(OPEN, default=True))) == (
        "INCONCLUSIVE: logits: top1: 200 samples show no drop, but about 300 are needed to show at most 1 % "
        "(exit 0: an inconclusive default gate does not count; with --gate top1=1% it does)"
    )


def test_the_exit_code_is_not_said_to_be_0_where_no_engine_was_built() -> None:
    line = verdict(replace(inconclusive(replace(OPEN, default=True)), engine=None))
    assert line.endswith(
        " (no engine was built; an inconclusive default gate does not count; with --gate top1=1% it does)"
    )


def test_defaults_of_several_outputs_have_no_short_flag() -> None:
    other = replace(OPEN, output="boxes:0", metric="equal", verdict="pass", default=True)
    line = verdict(inconclusive(replace(OPEN, default=True), other))
    assert line.endswith("(exit 0: an inconclusive default gate does not count; with --gate it does)")


@pytest.mark.parametrize(("report", "said"), [(INCONCLUSIVE, "exit 4 unless --allow-inconclusive"),
                                              (ALLOWED, "accepted by --allow-inconclusive")])  # fmt: skip
def test_an_inconclusive_requested_gate_says_whether_it_is_accepted(report: Report, said: str) -> None:
    assert verdict(report).endswith(f"are needed to show at most 1 % ({said})")


def test_the_requested_gate_that_needs_the_most_samples_is_explained_and_the_others_are_counted() -> None:
    larger = replace(OPEN, output="b", value=0.25, needed=4000)
    default = replace(OPEN, output="c", needed=9000, default=True)
    assert verdict(inconclusive(default, OPEN, larger)) == (
        "INCONCLUSIVE: b: top1: 200 samples show a drop in agreement of 0.25 %, but about 4000 are needed to show "
        "at most 1 %; and 2 more gates (exit 4 unless --allow-inconclusive)"
    )


@pytest.mark.parametrize(
    ("metric", "value", "limit", "needed", "said"),
    [
        ("top1", 0.9, 0.5, 2500, "a drop of 0.90 %, but about 2500 are needed to show more than 0.5 %"),
        ("top1", -0.5, 0.1, 900, "no drop, but about 900 are needed to show at most 0.1 %"),
        ("accuracy", 97.5, 97.0, 3000, "97.50 %, but about 3000 are needed to show at least 97 %"),
        ("accuracy", 96.5, 97.0, 3000, "96.50 %, but about 3000 are needed to show less than 97 %"),
    ],
)
def test_the_expected_outcome_of_more_samples_agrees_with_the_measurement(
    metric: str, value: float, limit: float, needed: int, said: str
) -> None:
    gate = replace(OPEN, metric=metric, value=value, limit=limit, needed=needed)
    assert f": 200 samples show {said} (" in verdict(inconclusive(gate))


def test_a_gate_that_more_samples_cannot_settle_shows_its_reason() -> None:
    gate = replace(OPEN, value=100.0, needed=0, reason="FP32 chooses one and the same class: agreement shows nothing")
    assert verdict(inconclusive(gate)).startswith(f"INCONCLUSIVE: logits: top1: {gate.reason} (exit 4")


def test_the_flag_names_a_default_that_stays_only_where_that_one_is_inconclusive() -> None:
    stays = replace(OPEN, metric="recall", value=0.0, limit=80.0, default=True)
    top1 = replace(OPEN, verdict="pass", default=True)
    line = verdict(inconclusive(stays, top1))
    assert line.endswith(
        "(exit 0: an inconclusive default gate does not count; with --gate recall=80%,top1=1% it does)"
    )
    line = verdict(inconclusive(replace(OPEN, default=True), replace(stays, verdict="pass")))
    assert line.endswith("(exit 0: an inconclusive default gate does not count; with --gate top1=1% it does)")


def test_the_flag_names_all_defaults_of_the_output_for_it_takes_their_place() -> None:
    other = replace(OPEN, metric="sqnr", value=30.0, limit=8.0, verdict="pass", default=True)
    line = verdict(inconclusive(replace(OPEN, default=True), other))
    assert line.endswith("(exit 0: an inconclusive default gate does not count; with --gate top1=1%,sqnr=8dB it does)")


@pytest.mark.parametrize("report", [PASSED, FAILED, INCONCLUSIVE])
def test_every_verdict_on_the_calibration_samples_says_so(report: Report) -> None:
    assert report.comparison is not None
    on_them = replace(report.comparison, calibrated_on=report.comparison.samples)
    line = verdict(replace(report, comparison=on_them))
    assert line.endswith(f"{CALIBRATED})")
    assert "calibrat" not in verdict(report)


def test_a_verdict_on_some_of_the_calibration_samples_counts_them() -> None:
    report = replace(PASSED, comparison=replace(COMPARISON, calibrated_on=3))
    said = "3 of 1000 evaluation samples were used for calibration: those are no evidence for unseen data"
    assert verdict(report) == f"PASS: 1/1 gates passed ({said})"


def test_of_several_candidates_those_that_were_calibrated_on_the_samples_are_named() -> None:
    first, second = SEVERAL.candidates
    on_them = replace(second.comparison, calibrated_on=1000)
    assert verdict(replace(SEVERAL, candidates=(first, replace(second, comparison=on_them)))) == (
        f"FAIL: out/int8: boxes:0: sqnr (out/int8: {CALIBRATED})"
    )
    both = tuple(replace(each, comparison=replace(each.comparison, calibrated_on=1000)) for each in SEVERAL.candidates)
    assert verdict(replace(SEVERAL, candidates=both)) == f"FAIL: out/int8: boxes:0: sqnr ({CALIBRATED})"


def test_a_pass_of_a_comparison_counts_its_gates() -> None:
    assert verdict(replace(COMPARED, comparison=replace(COMPARISON, gates=COMPARISON.gates * 3))) == (
        "PASS: 3/3 gates passed"
    )
