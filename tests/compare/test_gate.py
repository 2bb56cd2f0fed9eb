"""Gates: their syntax, limits that hold exactly at the limit, and failure in case of doubt."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtopt.compare.catalog import METRICS
from trtopt.compare.defaults import DEFAULTS
from trtopt.compare.gate import judge, verdict
from trtopt.compare.gates import Gate, gate, parse_gates
from trtopt.errors import UsageError
from trtopt.types import GateResult, OutputDrift, Verdict


def drift(kind: str = "scores", output: str = "logits", **values: float) -> OutputDrift:
    return OutputDrift(output=output, kind=kind, values=values)


def one(output: OutputDrift, gates: str = "") -> GateResult:
    (result,) = judge([output], parse_gates(gates), 100)
    return result


def agreeing(agree: int, samples: int, output: str = "logits", top5: int = 0) -> OutputDrift:
    """Return an output with classes, without labels."""
    values = {"top1": 100.0 * agree / samples, "top5": 100.0 * top5 / samples}
    counts = {"samples": samples, "agree": agree, "top5": top5}
    return OutputDrift(output=output, kind="scores", values=values, counts=counts)


def labelled(both: int, only_fp32: int, only_candidate: int, neither: int = 0) -> OutputDrift:
    """Return an output with classes and labels, by the numbers of samples on which both, one or none are right."""
    samples = both + only_fp32 + only_candidate + neither
    values = {
        "accuracy_fp32": 100.0 * (both + only_fp32) / samples,
        "accuracy": 100.0 * (both + only_candidate) / samples,
        "top1": 100.0 * both / samples,
    }
    counts = {"samples": samples, "agree": both, "both": both}
    counts |= {"only_fp32": only_fp32, "only_candidate": only_candidate}
    return OutputDrift(output="logits", kind="scores", values=values, counts=counts)


def test_gates_are_parsed() -> None:
    assert parse_gates("top1=1%, cosine=0.99,logits:sqnr=20dB,mean_abs=1e-3") == (
        Gate(metric="top1", limit=1.0, sense="drop"),
        Gate(metric="cosine", limit=0.99, sense="at least"),
        Gate(metric="sqnr", limit=20.0, sense="at least", output="logits"),
        Gate(metric="mean_abs", limit=0.001, sense="at most"),
    )


def test_an_output_name_may_contain_colons() -> None:
    assert parse_gates("Identity:0:top1=1") == (gate("top1", 1.0, "Identity:0"),)


def test_a_custom_metric_states_which_side_is_good() -> None:
    assert parse_gates("wer<=0.1, boxes:my_map >= 0.5") == (
        Gate(metric="wer", limit=0.1, sense="at most"),
        Gate(metric="my_map", limit=0.5, sense="at least", output="boxes"),
    )


def test_a_known_metric_may_state_its_side() -> None:
    assert parse_gates("cosine>=0.9,rmse<=1") == parse_gates("cosine=0.9,rmse=1")


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
        ("banana=1", "unknown metric 'banana'. --gate help lists them"),
        ("banana=1", "for a metric of your own write banana>=LIMIT or banana<=LIMIT"),
        ("cosine<=0.9", "cosine must be at least its limit. Write cosine=0.9"),
        ("top1>=99", "top1 takes the largest drop allowed"),
        ("a<b=1", "does not parse"),
        ("nonfinite=3", "unknown metric 'nonfinite'"),
        ("top1=", "has no limit: '' is not a number in %. Write top1=1%"),
        ("top1=one", "has no limit: 'one' is not a number in %. Write top1=1%"),
        ("cosine=nan", "has no limit: 'nan' is not a number, and it takes no unit"),
        ("rmse=inf", "has no limit"),
        ("rmse=1%", "has no limit: '1%' is not a number, and it takes no unit"),
        ("sqnr=20%", "has no limit: '20%' is not a number in dB. Write sqnr=20dB"),
        ("top1=99%", "the largest drop allowed, in points from 0 to 50. Write top1=1%"),
        ("top5=-1", "the largest drop allowed"),
        ("cosine=99", "cosine lies between -1 and 1"),
        ("rmse=-0.1", "rmse is never negative"),
        ("equal=0.99", "equal is in percent. Write equal=99%, or equal=0.99% if that is what you want"),
        ("accuracy=101", "accuracy is a percentage"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_gates(text)
    assert message in str(error.value)


def test_a_small_percentage_is_accepted_with_its_unit() -> None:
    assert parse_gates("equal=0.99%") == (gate("equal", 0.99),)


@given(st.integers(1, 2000), st.data())
def test_a_limit_of_zero_is_compared_with_the_estimate_itself(count: int, data: st.DataObject) -> None:
    agree = data.draw(st.integers(0, count))
    assert one(agreeing(agree, count), "top1=0%").passed == (agree == count)


@pytest.mark.parametrize(
    ("agree", "samples", "verdict"),
    [
        (1000, 1000, "pass"),
        (995, 1000, "inconclusive"),
        (980, 1000, "fail"),
        (100, 100, "inconclusive"),
        (300, 300, "pass"),
    ],
)
def test_agreement_passes_or_fails_only_when_it_is_shown(agree: int, samples: int, verdict: Verdict) -> None:
    assert one(agreeing(agree, samples), "top1=1%").verdict == verdict


@pytest.mark.parametrize(
    ("right", "verdict"), [(999, "pass"), (993, "inconclusive"), (985, "inconclusive"), (970, "fail")]
)
def test_a_minimum_of_accuracy_is_settled_by_its_bounds(right: int, verdict: Verdict) -> None:
    result = one(labelled(right, 0, 0, 1000 - right), "accuracy=99%")
    assert result.verdict == verdict
    assert result.low < result.value < result.high
    assert result.value == pytest.approx(right / 10)


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        (("pass", "pass"), "pass"),
        (("pass", "inconclusive"), "inconclusive"),
        (("inconclusive", "fail", "pass"), "fail"),
        ((), "fail"),
        (("pass", "unchecked"), "fail"),
    ],
)
def test_the_worst_gate_decides(verdicts: tuple[Verdict, ...], overall: Verdict) -> None:
    results = [GateResult(output="", metric="m", value=0.0, limit=0.0, verdict=v, reason="") for v in verdicts]
    assert verdict(results) == overall


@pytest.mark.parametrize(
    ("gate", "metric", "good", "bad"),
    [
        ("cosine=0.99", "cosine", 0.99, np.nextafter(0.99, 0)),
        ("sqnr=20", "sqnr", 20.0, np.nextafter(20, 0)),
        ("equal=99%", "equal", 99.0, np.nextafter(99, 0)),
        ("rmse=0.1", "rmse", 0.1, np.nextafter(0.1, 1)),
        ("max_abs=0", "max_abs", 0.0, 1e-300),
        ("mean_abs=0.5", "mean_abs", 0.5, np.nextafter(0.5, 1)),
    ],
)
def test_each_metric_holds_at_its_limit_and_not_beyond(gate: str, metric: str, good: float, bad: float) -> None:
    assert one(drift(**{metric: good}), gate).passed
    assert not one(drift(**{metric: float(bad)}), gate).passed


COUNTED = {"top1", "top5", "accuracy", "recall", "nonfinite"}


@pytest.mark.parametrize("metric", [name for name in METRICS if name not in COUNTED])
def test_nan_never_passes(metric: str) -> None:
    for limit in (0.0, 1.0, 40.0):
        # A gate on the engine keeps the default gates beside it.
        results = judge([drift(**{metric: math.nan})], [gate(metric, limit)], 9)
        assert [result.verdict for result in results if result.metric == metric] == ["fail"]


@pytest.mark.parametrize("sign", [">=", "<="])
def test_nan_of_a_custom_metric_never_passes(sign: str) -> None:
    assert one(drift("own", mine=math.nan), f"mine{sign}0.5").verdict == "fail"


@pytest.mark.parametrize("gate", ["mine<=0.5", "mine>=0.5"])
def test_an_infinity_of_a_custom_metric_never_passes(gate: str) -> None:
    for value in (math.inf, -math.inf):
        assert one(drift("own", mine=value), gate).verdict == "fail"


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"samples": 10},
        {"agree": 101},
        {"agree": -1},
        {"only_fp32": -1},
        {"both": 98, "only_candidate": 3},
        {"only_fp32": None},
        {"samples": None},
        {"agree": None, "both": None},
    ],
)
@pytest.mark.parametrize("gate", ["top1=1%", "accuracy=1%"])
def test_inconsistent_counts_fail(wrong: dict[str, int | None], gate: str) -> None:
    output = labelled(90, 1, 1, 8)
    counts = {name: count for name, count in {**output.counts, **wrong}.items() if count is not None}
    result = one(replace(output, counts=counts), gate)
    assert result.verdict == "fail"
    assert "the counts of samples are missing or contradict each other" in result.reason


def test_labels_turn_top1_into_a_drop_of_accuracy() -> None:
    result = one(labelled(950, 24, 1, 25), "top1=1%")
    assert result.verdict == "fail"
    assert result.value == pytest.approx(2.3)
    assert result.reason.startswith("top-1 accuracy drops by 2.30 points (97.40 % -> 95.10 %, McNemar p 1.5e-06), 95 %")
    assert result.reason.endswith(f"bounds {result.low:.2f} to {result.high:.2f}, limit 1 %")


@pytest.mark.parametrize(
    ("output", "gate", "reason"),
    [
        (agreeing(980, 1000), "top1=1", "top-1 differs from FP32 on 2.00 % of samples, 95 % bounds 1.3"),
        (
            agreeing(980, 1000, top5=980),
            "top5=1",
            "FP32's top-1 is not among the candidate's top 5 on 2.00 % of samples",
        ),
        (
            labelled(89, 1, 2, 8),
            "top1=1",
            "top-1 accuracy rises by 1.00 points (90.00 % -> 91.00 %, McNemar p 1), 95 % bounds of the drop -",
        ),
        (labelled(90, 0, 0, 10), "top1=1", "top-1 accuracy does not change (90.00 % -> 90.00 %)"),
        (labelled(90, 0, 0, 10), "accuracy=80%", "accuracy is 90.00 %, 95 % bounds 83.63 to 94.47, at least 80 %"),
        (
            labelled(90, 0, 0, 10),
            "accuracy=95%",
            "accuracy is 90.00 %, that of FP32 itself 90.00 %, 95 % bounds 83.63 to 94.47, at least 95 %",
        ),
        (drift(cosine=0.98), "cosine=0.99", "cosine is 0.98, must be at least 0.99"),
        (drift(sqnr=math.inf), "sqnr=20", "sqnr is inf dB, must be at least 20 dB"),
        (drift(rmse=0.25), "rmse=0.1", "rmse is 0.25, must be at most 0.1"),
        (drift("own", wer=0.25), "wer<=0.1", "wer is 0.25, must be at most 0.1"),
    ],
)
def test_the_reason_is_a_sentence(output: OutputDrift, gate: str, reason: str) -> None:
    assert one(output, gate).reason.startswith(reason)


def test_a_value_is_never_rounded_to_its_limit() -> None:
    assert "0.98999999" in one(drift(cosine=0.98999999), "cosine=0.99").reason


def test_a_bound_is_never_rounded_to_the_limit() -> None:
    result = one(agreeing(298, 298), "top1=1%")  # 1 - 0.05 ** (1 / 298) is a little more than 1 %
    assert result.verdict == "inconclusive"
    assert "bounds 0.00 to 1.0002, limit 1 %" in result.reason


@pytest.mark.parametrize("kind", DEFAULTS)
def test_without_gates_every_output_is_judged_by_the_default_of_its_kind(kind: str) -> None:
    good = {"samples": 999, "agree": 999, "same": 999, "decisions": 1998, "kept": 1998, "having": 999, "groups": 2}
    values = {metric: 0.0 if METRICS[metric].sense == "at most" else 100.0 for metric, _ in DEFAULTS[kind]}
    outputs = [OutputDrift(output=name, kind=kind, values=values, counts=good) for name in ("a", "b")]
    results = judge(outputs, (), 999)
    assert [(r.output, r.metric, r.limit, r.passed, r.default) for r in results] == [
        (name, metric, limit, True, True) for name in ("a", "b") for metric, limit in DEFAULTS[kind]
    ]


def test_spurious_boxes_fail_by_default() -> None:
    results = judge([drift("detection", matched=100.0, extra=1.5)], (), 9)
    assert [(each.metric, each.verdict) for each in results] == [("matched", "pass"), ("extra", "fail")]


def test_a_default_gate_without_its_metric_fails() -> None:
    result = one(drift("values"))
    assert (result.passed, result.default) == (False, True)
    assert result.reason == "cosine could not be evaluated on this output"


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        ("equal=99%", "equal could not be evaluated: logits (scores) does not have this metric"),
        ("accuracy=90%", "accuracy could not be evaluated: logits (scores) does not have labels that fit"),
        ("lgits:top1=1%", "top1 could not be evaluated: unknown output lgits; the outputs are logits"),
    ],
)
def test_a_gate_that_cannot_be_evaluated_fails_and_says_why(gate: str, why: str) -> None:
    result = judge([agreeing(100, 100)], parse_gates(gate), 100)[0]
    assert (result.verdict, result.default) == ("fail", False)
    assert result.reason == why


def test_a_gate_is_on_every_output_that_has_the_metric() -> None:
    outputs = [drift(output="a", cosine=1.0), drift(output="b", cosine=0.5)]
    results = judge(outputs, parse_gates("cosine=0.9"), 9)
    assert [(r.output, r.passed, r.default) for r in results] == [("a", True, False), ("b", False, False)]


def test_an_output_without_a_gate_is_judged_by_its_defaults() -> None:
    outputs = [drift(output="a", cosine=1.0), drift("values", "b", cosine=0.5), drift("exact", "c", equal=90.0)]
    results = judge(outputs, parse_gates("a:cosine=0.9"), 9)
    assert [(r.output, r.metric, r.passed, r.default) for r in results] == [
        ("a", "cosine", True, False),
        ("b", "cosine", False, True),
        ("c", "equal", False, True),
    ]


def test_optional_metrics_have_a_default_gate_only_if_measured() -> None:
    plain = judge([drift("values", cosine=1.0)], (), 9)
    assert [each.metric for each in plain] == ["cosine"]
    parts = judge([drift("values", cosine=1.0, cosine_part=0.5, r2=0.5, sqnr_min=7.9)], (), 9)
    assert [(each.metric, each.verdict) for each in parts] == [
        ("cosine", "pass"),
        ("cosine_part", "fail"),
        ("r2", "fail"),
        ("sqnr_min", "fail"),
    ]


@pytest.mark.parametrize("gates", ["", "top1=1%", "accuracy=90%"])
@pytest.mark.parametrize("chosen", [1, 2])
def test_agreement_on_one_class_shows_nothing(gates: str, chosen: int) -> None:
    output = labelled(1000, 0, 0)
    output = replace(output, counts={**output.counts, "chosen": chosen}, values={**output.values, "cosine": 1.0})
    verdicts = {each.metric: each.verdict for each in judge([output], parse_gates(gates), 1000)}
    assert verdicts[gates.partition("=")[0] or "top1"] == ("inconclusive" if chosen == 1 else "pass")


def test_disagreement_on_one_class_fails() -> None:
    output = agreeing(900, 1000)
    assert one(replace(output, counts={**output.counts, "chosen": 1}), "top1=1%").verdict == "fail"


@pytest.mark.parametrize(("pixels", "verdict"), [(99.9, "inconclusive"), (97.0, "fail")])
def test_a_map_of_one_class_is_judged_by_its_pixels(pixels: float, verdict: Verdict) -> None:
    output = drift("segmentation", miou=50.0, pixels=pixels)
    assert one(replace(output, counts={"samples": 9, "chosen": 1}), "miou=98%").verdict == verdict


@pytest.mark.parametrize("gates", ["", "matched=99%"])
def test_no_boxes_at_all_show_nothing(gates: str) -> None:
    output = replace(drift("detection", "boxes", extra=0.0), counts={"samples": 9, "boxes": 0})
    verdicts = {each.metric: each.verdict for each in judge([output], parse_gates(gates), 9)}
    assert verdicts["matched"] == "inconclusive"


@pytest.mark.parametrize("gates", ["", "max_abs=1e9"])
def test_nonfinite_samples_fail_whatever_the_gates_are(gates: str) -> None:
    output = drift("values", "y", nonfinite=2.0, max_abs=0.0, cosine=1.0)
    results = judge([replace(output, first_bad="eval.npz[3]")], parse_gates(gates), 8)
    (failed,) = [result for result in results if not result.passed]
    assert (failed.output, failed.metric) == ("y", "nonfinite")
    assert failed.reason == "NaN or Inf in 2 of 8 samples, first in eval.npz[3]"


@pytest.mark.parametrize("gates", ["", "top1=1%"])
def test_nothing_to_judge_fails(gates: str) -> None:
    for samples in (0, 5):
        results = judge([], parse_gates(gates), samples)
        assert results
        assert not any(result.passed for result in results)


def test_labels_that_contradict_fp32_fail_the_gate_on_accuracy() -> None:
    counts = {"samples": 1000, "agree": 1000, "unfit": 98}
    output = OutputDrift(output="logits", kind="scores", values={"top1": 100.0, "cosine": 1.0}, counts=counts)
    for gates, contradicted in itertools.product(("", "top1=1%"), (0, 1)):
        counts["contradicted"] = contradicted
        result = judge([output], parse_gates(gates), 1000)[0]
        assert result.verdict == ("fail" if contradicted else "inconclusive")
        assert "the labels do not fit: FP32 itself is right on 9.80 % of samples" in result.reason


def test_an_output_without_fitting_labels_is_judged_by_agreement() -> None:
    counts = {"samples": 1000, "agree": 1000, "unfit": 98}
    other = OutputDrift(output="aux", kind="scores", values={"top1": 100.0}, counts=counts)
    results = judge([other, labelled(900, 0, 0, 100)], parse_gates("top1=1%"), 1000)
    assert [result.verdict for result in results] == ["pass", "pass"]


def deciding(kept: int, decisions: int, having: int, groups: int = 2) -> OutputDrift:
    """Return an output of which a class has so many decisions of FP32, in `having` samples."""
    counts = {"samples": 1000, "decisions": decisions, "kept": kept, "having": having, "groups": groups, "class": 3}
    return replace(drift(recall=100.0 * kept / decisions), counts=counts)


@pytest.mark.parametrize(
    ("output", "verdict", "reason"),
    [
        (
            deciding(100, 100, 100),
            "pass",
            "class 3 keeps 100 of FP32's 100 decisions, in 100 samples, 95 % bounds 96.38",
        ),
        (deciding(0, 1, 1), "pass", "at least 80 %: so few may be borderline decisions"),
        (deciding(0, 2, 2), "inconclusive", "at least 80 %: too few to tell"),
        (deciding(0, 5, 5), "fail", "class 3 keeps 0 of FP32's 5 decisions, in 5 samples, 95 % bounds 0.00 to 52.18"),
        (deciding(0, 5, 5, groups=1000), "inconclusive", "too few to tell"),
        (deciding(0, 900, 1), "pass", "so few may be borderline decisions"),
        (deciding(600, 1000, 100), "fail", "at least 80 %"),
        (deciding(850, 1000, 100), "pass", "at least 80 %"),
    ],
)
def test_decisions_of_a_class_fail_only_when_their_loss_is_shown(
    output: OutputDrift, verdict: Verdict, reason: str
) -> None:
    result = one(output, "recall=80%")
    assert (result.verdict, result.needed) == (verdict, 0)
    assert reason in result.reason
    assert result.low <= result.value <= result.high


@pytest.mark.parametrize("wrong", [{"kept": 101}, {"kept": -1}, {"having": 0}, {"groups": None}, {"decisions": 0}])
def test_inconsistent_counts_of_decisions_fail(wrong: dict[str, int | None]) -> None:
    output = deciding(100, 100, 100)
    counts = {name: count for name, count in {**output.counts, **wrong}.items() if count is not None}
    assert one(replace(output, counts=counts), "recall=80%").verdict == "fail"


def test_an_output_that_is_nan_in_every_sample_has_no_other_complaint() -> None:
    nothing = drift(nonfinite=9.0)
    assert [each.metric for each in judge([nothing], (), 9)] == ["nonfinite"]
    asked = judge([nothing], parse_gates("top1=1%"), 9)
    assert [(each.metric, each.verdict) for each in asked] == [("nonfinite", "fail"), ("top1", "fail")]
    assert asked[1].reason == "top1 could not be evaluated: every sample of logits has a NaN or Inf"


def test_no_loss_at_all_may_be_asked_for() -> None:
    assert one(deciding(100, 100, 100), "recall=100%").verdict == "pass"
    assert one(deciding(99, 100, 100), "recall=100%").verdict == "fail"
