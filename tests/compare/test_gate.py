"""Gates: how they are written, that a limit holds at the limit and not beyond it, and that doubt fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtopt.compare.gate import DEFAULTS, Gate, judge, parse_gates
from trtopt.compare.metrics import METRICS
from trtopt.errors import UsageError
from trtopt.types import GateResult, OutputDrift


def drift(kind: str = "scores", output: str = "logits", **values: float) -> OutputDrift:
    return OutputDrift(output=output, kind=kind, values=values)


def one(output: OutputDrift, gates: str = "") -> GateResult:
    (result,) = judge([output], parse_gates(gates), 100, {})
    return result


def test_gates_are_parsed() -> None:
    assert parse_gates("top1=1%, cosine=0.99,logits:sqnr=20dB,mean_abs=1e-3") == (
        Gate(metric="top1", limit=1.0),
        Gate(metric="cosine", limit=0.99),
        Gate(metric="sqnr", limit=20.0, output="logits"),
        Gate(metric="mean_abs", limit=0.001),
    )


def test_an_output_name_may_hold_colons() -> None:
    assert parse_gates("Identity:0:top1=1") == (Gate(metric="top1", limit=1.0, output="Identity:0"),)


@pytest.mark.parametrize("text", ["", " "])
def test_blank_text_gives_no_gates(text: str) -> None:
    assert parse_gates(text) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",", "'' does not parse"),
        ("top1=1%,", "'' does not parse"),
        ("top1", "'top1' does not parse. Write METRIC=LIMIT"),
        ("=1", "'=1' does not parse"),
        ("logits:=1", "'logits:=1' does not parse"),
        ("topp1=1", "unknown metric 'topp1'. Did you mean top1?"),
        ("banana=1", "unknown metric 'banana'. Choose from top1, top5, "),
        ("nonfinite=3", "unknown metric 'nonfinite'"),
        ("top1=", "has no limit: '' is no number of %. Write top1=1%"),
        ("top1=one", "has no limit: 'one' is no number of %. Write top1=1%"),
        ("cosine=nan", "has no limit: 'nan' is no number, and takes no unit"),
        ("rmse=inf", "has no limit"),
        ("rmse=1%", "has no limit: '1%' is no number, and takes no unit"),
        ("sqnr=20%", "has no limit: '20%' is no number of dB. Write sqnr=20dB"),
        ("top1=99%", "the largest drop allowed, in points from 0 to 50. Write top1=1%"),
        ("top5=-1", "the largest drop allowed"),
        ("cosine=99", "a cosine lies between -1 and 1"),
        ("rmse=-0.1", "rmse is never negative"),
        ("equal=0.99", "equal is in percent. Write equal=99%, or equal=0.99% if so meant"),
        ("accuracy=101", "accuracy is a percentage"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_gates(text)
    assert message in str(error.value)


def test_a_small_share_is_taken_when_its_unit_says_so() -> None:
    assert parse_gates("equal=0.99%") == (Gate(metric="equal", limit=0.99),)


@given(st.integers(1, 2000), st.data())
def test_top1_holds_up_to_its_limit_and_not_beyond(count: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(1, count))
    lost = data.draw(st.integers(0, min(before, (count - 1) // 2)))
    limit = 100 * lost / count
    values = {"accuracy_fp32": 100.0 * before / count, "accuracy": 100.0 * (before - lost) / count, "top1": 50.0}
    assert one(drift(**values), f"top1={limit!r}").passed
    agreement = {"top1": 100.0 * (count - lost) / count}
    assert one(drift(**agreement), f"top1={limit!r}").passed
    if lost:
        assert not one(drift(**values), f"top1={100 * (lost - 0.5) / count}").passed
        assert not one(drift(**agreement), f"top1={100 * (lost - 0.5) / count}").passed


def test_a_drop_of_exactly_the_limit_is_shown_as_it_was_meant() -> None:
    result = one(drift(top1=99.1), "top1=0.9%")  # 100 - 99.1 is 0.9000000000000057
    assert (result.passed, result.value) == (True, 0.9)
    assert result.reason == "top-1 differs from FP32 on 0.90 % of samples, limit 0.9 %"


@pytest.mark.parametrize(
    ("gate", "metric", "good", "bad"),
    [
        ("cosine=0.99", "cosine", 0.99, np.nextafter(0.99, 0)),
        ("sqnr=20", "sqnr", 20.0, np.nextafter(20, 0)),
        ("equal=99%", "equal", 99.0, np.nextafter(99, 0)),
        ("accuracy=90", "accuracy", 90.0, np.nextafter(90, 0)),
        ("rmse=0.1", "rmse", 0.1, np.nextafter(0.1, 1)),
        ("max_abs=0", "max_abs", 0.0, 1e-300),
        ("mean_abs=0.5", "mean_abs", 0.5, np.nextafter(0.5, 1)),
        ("top5=2%", "top5", 98.0, 97.99),
    ],
)
def test_each_metric_holds_at_its_limit_and_not_beyond(gate: str, metric: str, good: float, bad: float) -> None:
    assert one(drift(**{metric: good}), gate).passed
    assert not one(drift(**{metric: float(bad)}), gate).passed


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "nonfinite"])
def test_nan_never_passes(metric: str) -> None:
    for limit in (0.0, 1.0, 40.0):
        (result,) = judge([drift(**{metric: math.nan})], [Gate(metric=metric, limit=limit)], 9, {})
        assert not result.passed


def test_labels_turn_top1_into_a_drop_of_accuracy() -> None:
    result = one(drift(top1=93.0, accuracy_fp32=97.4, accuracy=95.1), "top1=1%")
    assert not result.passed
    assert result.value == pytest.approx(2.3)
    assert result.reason == "top-1 accuracy drops by 2.30 points (97.40 % -> 95.10 %), limit 1"


@pytest.mark.parametrize(
    ("output", "gate", "reason"),
    [
        (drift(top1=98.0), "top1=1", "top-1 differs from FP32 on 2.00 % of samples, limit 1 %"),
        (drift(top5=98.0), "top5=1", "FP32's top-1 is not among the candidate's top 5 on 2.00 % of samples, limit 1 %"),
        (drift(top1=90.0, accuracy_fp32=90.0, accuracy=91.0), "top1=1", "top-1 accuracy rises by 1.00 points"),
        (drift(top1=90.0, accuracy_fp32=90.0, accuracy=90.0), "top1=1", "top-1 accuracy does not change"),
        (drift(cosine=0.98), "cosine=0.99", "cosine is 0.98, must be at least 0.99"),
        (drift(sqnr=math.inf), "sqnr=20", "sqnr is inf dB, must be at least 20 dB"),
        (drift(rmse=0.25), "rmse=0.1", "rmse is 0.25, must be at most 0.1"),
    ],
)
def test_the_reason_is_a_sentence(output: OutputDrift, gate: str, reason: str) -> None:
    assert one(output, gate).reason.startswith(reason)


@pytest.mark.parametrize(
    ("output", "gate", "shown"),
    [
        (drift(cosine=0.98999999), "cosine=0.99", "0.98999999"),
        (drift(top1=98.996), "top1=1", "1.004 %"),
    ],
)
def test_a_value_is_never_rounded_to_its_limit(output: OutputDrift, gate: str, shown: str) -> None:
    assert shown in one(output, gate).reason


@pytest.mark.parametrize("kind", DEFAULTS)
def test_without_gates_every_output_is_held_to_the_default_of_its_kind(kind: str) -> None:
    metric, limit = DEFAULTS[kind]
    outputs = [drift(kind, name, **{metric: 100.0}) for name in ("a", "b")]
    results = judge(outputs, (), 9, {})
    assert [(r.output, r.metric, r.limit, r.passed, r.default) for r in results] == [
        ("a", metric, limit, True, True),
        ("b", metric, limit, True, True),
    ]


def test_a_default_gate_without_its_metric_fails() -> None:
    result = one(drift("values"))
    assert (result.passed, result.default) == (False, True)
    assert result.reason == "cosine could not be evaluated on this output"


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        ("equal=99%", "equal could not be evaluated: logits (scores) has not this metric"),
        ("accuracy=90%", "accuracy could not be evaluated: logits (scores) has not labels that fit"),
        ("lgits:top1=1%", "top1 could not be evaluated: there is no output lgits, only logits"),
    ],
)
def test_a_gate_that_cannot_be_evaluated_fails_and_says_why(gate: str, why: str) -> None:
    result = one(drift(top1=100.0), gate)
    assert not result.passed
    assert result.reason == why


def test_a_gate_holds_for_every_output_that_has_the_metric() -> None:
    outputs = [drift(output="a", cosine=1.0), drift(output="b", cosine=0.5), drift("exact", "c", equal=100.0)]
    results = judge(outputs, parse_gates("cosine=0.9"), 9, {})
    assert [(r.output, r.passed) for r in results] == [("a", True), ("b", False)]


def test_a_gate_of_one_output_leaves_the_others_alone() -> None:
    outputs = [drift(output="a", cosine=1.0), drift(output="b", cosine=0.5)]
    assert [r.output for r in judge(outputs, parse_gates("a:cosine=0.9"), 9, {})] == ["a"]


@pytest.mark.parametrize("gates", ["", "max_abs=1e9"])
def test_nonfinite_samples_fail_whatever_the_gates_are(gates: str) -> None:
    output = drift("values", "y", nonfinite=2.0, max_abs=0.0, cosine=1.0)
    results = judge([output], parse_gates(gates), 8, {"y": "eval.npz[3]"})
    (failed,) = [result for result in results if not result.passed]
    assert (failed.output, failed.metric) == ("y", "nonfinite")
    assert failed.reason == "NaN or Inf in 2 of 8 samples, first in eval.npz[3]"


@pytest.mark.parametrize("gates", ["", "top1=1%"])
def test_nothing_to_judge_fails(gates: str) -> None:
    for samples in (0, 5):
        results = judge([], parse_gates(gates), samples, {})
        assert results
        assert not any(result.passed for result in results)
