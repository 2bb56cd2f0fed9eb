"""Tests of the next steps after a run that failed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from report.reports import FAILED, INCONCLUSIVE, JUMPED, PASSED, SEVERAL, UNCHECKED

from trtopt.report import render
from trtopt.report.page.steps import Step, steps
from trtopt.types import GUARDED, Decision, EngineFault, Report

FAULTY = replace(JUMPED, fault=EngineFault(nodes=("stem", "a b"), builds=3, reason="wrong with these nodes in INT8"))
COMMAND = "trtopt convert model.onnx -p int8 --calib data"


@pytest.mark.parametrize("report", [FAILED, SEVERAL], ids=["one", "several"])
def test_drift_of_unknown_origin_is_located_first(report: Report) -> None:
    (step,) = steps(report)
    candidate = "out" if report is FAILED else "out/int8"
    assert step == Step(
        "to find the first divergent layer", f"trtopt compare model.onnx {candidate} --data eval.npz --layers"
    )


@pytest.mark.parametrize("report", [PASSED, INCONCLUSIVE, UNCHECKED], ids=["passed", "inconclusive", "unchecked"])
def test_there_is_no_step_where_nothing_failed(report: Report) -> None:
    assert steps(report) == ()


def test_the_noisiest_nodes_are_kept_by_the_same_command_with_more_flags() -> None:
    (step,) = steps(replace(JUMPED, invocation=COMMAND))
    assert step.command == f"{COMMAND} --keep body --keep stem"


def test_nodes_of_the_guard_stay_kept_when_others_are_kept_as_well() -> None:
    assert JUMPED.typed is not None
    kept = Decision(node="odd", op="Conv", precision="fp16", reason=f"{GUARDED}: cosine is 0.9")
    typed = replace(JUMPED.typed, decisions=(*JUMPED.typed.decisions, kept))
    (step,) = steps(replace(JUMPED, typed=typed, invocation=COMMAND))
    assert step.command == f"{COMMAND} --keep body --keep stem --keep odd"


def test_only_the_flags_are_known_for_a_run_from_python() -> None:
    (step,) = steps(JUMPED)
    assert step.why.endswith("convert again with")
    assert step.command == "--keep body --keep stem"


def test_nodes_that_make_the_engine_wrong_are_kept_instead_of_the_noisiest() -> None:
    (step,) = steps(replace(FAULTY, invocation=COMMAND))
    assert step.command == f"{COMMAND} --keep stem --keep 'a b'"


def test_a_gate_that_was_not_evaluated_is_no_reason_to_keep_a_node() -> None:
    assert FAILED.comparison is not None
    gates = tuple(replace(gate, value=math.nan) for gate in FAILED.comparison.gates)
    unfit = replace(FAILED, comparison=replace(FAILED.comparison, gates=gates))
    assert steps(unfit) == ()
    assert steps(replace(unfit, layers=JUMPED.layers)) == ()


def test_a_command_is_a_line_of_its_own_that_is_not_wrapped() -> None:
    long = f"trtopt convert {'folder/' * 30}model.onnx"
    (step,) = steps(replace(FAULTY, invocation=long))
    assert f"  {step.command}" in render("text", replace(FAULTY, invocation=long)).splitlines()


@pytest.mark.parametrize("format", ["text", "markdown", "html", "github", "junit"])
def test_people_read_the_steps_in_every_format(format: str) -> None:
    assert "--keep" in render(format, replace(FAULTY, invocation=COMMAND))
