"""The result of one gate on one output.

Touches: nothing.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from trtopt.compare.catalog import METRICS
from trtopt.compare.gates import Gate
from trtopt.compare.measures.decisions import lost
from trtopt.compare.statistics import Bounds, drop, mcnemar, needed, settles, share
from trtopt.types import GateResult, OutputDrift, Verdict
from trtopt.wording import counted

_COUNTED = {"top1": "agree", "top1_agreement": "agree", "top5": "top5", "accuracy": "both", "same": "same"}
"""Metrics that are computed from counts, and the count that each of them needs."""

_DIFFERS = {
    "top1": "top-1 differs from FP32",
    "top1_agreement": "top-1 differs from FP32",
    "top5": "FP32's top-1 is not among the candidate's top 5",
    "same": "most elements differ from FP32",
}
"""The meaning of a drop from 100 % of the samples, in words."""

_RIGHT = ("both", "only_fp32", "only_candidate")
"""Counts of the samples on which both models or only one are right: an output has either all of them or none."""

_DECISIONS = ("decisions", "kept", "having", "groups")
"""Counts that `recall` is computed from: of the class with the clearest loss, and the number of classes."""

_OF_DECISIONS = frozenset({*_DECISIONS, "class"})
"""Counts that may exceed the number of samples."""

_NOISE = 0.25
"""Share of the allowed loss that borderline decisions may explain."""

_AGREEMENT = frozenset({"top1", "top1_agreement", "top5", "accuracy", "pixels", "miou", "miou_min", "equal", "same"})
"""Metrics that show nothing if FP32 chooses the same class for all samples."""


def unjudged(output: str, metric: str, limit: float, reason: str, *, default: bool = False) -> GateResult:
    """Return the failed result of a gate that could not be evaluated."""
    return GateResult(
        output=output, metric=metric, value=math.nan, limit=limit, verdict="fail", reason=reason, default=default
    )


def finds_nothing(output: OutputDrift) -> bool:
    """Return whether FP32 finds no boxes on any of the samples."""
    return output.counts.get("boxes") == 0 and output.counts.get("samples", 0) > 0


def evaluated(gate: Gate, output: OutputDrift, *, default: bool = False) -> GateResult:
    """Return the result of a gate that applies to the output; `default` says that it is a default gate."""
    if gate.metric == "matched" and finds_nothing(output):
        why = "FP32 finds no boxes on these samples, so none can be missed"
        return _nothing_shown(gate, output, why, default=default)
    reason = _why_not_evaluated(gate, output)
    if reason:
        return unjudged(output.output, gate.metric, gate.limit, reason, default=default)
    if gate.sense == "drop":
        result = _drop(gate, output)
    elif gate.metric == "accuracy":
        result = _accuracy(gate, output)
    elif gate.metric == "recall":
        result = _recall(gate, output)
    else:
        result = _level(gate, output)
    if gate.metric == "top1" and "unfit" in output.counts and not output.counts.get("contradicted"):
        return replace(_nothing_shown(gate, output, "", default=default), reason=_unfit(output))
    if gate.metric == "r2" and output.counts.get("harmless") and result.verdict == "fail":
        why = "FP32's probabilities hardly vary, and errors stay below 0.05: nothing shows that they follow the samples"
        return _nothing_shown(gate, output, why, default=default)
    if gate.metric in _AGREEMENT and output.counts.get("chosen") == 1 and not _disagrees(result, output):
        why = "FP32 always chooses the same class, so agreement shows nothing"
        if output.counts.get("samples") == 1:
            nothing = _nothing_shown(gate, output, why, default=default)
            return replace(nothing, reason="one sample shows nothing: give more")
        return _nothing_shown(gate, output, why, default=default)
    return replace(result, default=default)


def _why_not_evaluated(gate: Gate, output: OutputDrift) -> str:
    """Return why the output's values and counts do not allow an evaluation, or an empty string."""
    counts = output.counts
    if gate.metric not in output.values:
        return f"{gate.metric} could not be evaluated on this output"
    if gate.metric == "top1" and "unfit" in counts and counts.get("contradicted"):
        return _unfit(output)
    inconsistent = gate.metric in _COUNTED and not _consistent(counts, _COUNTED[gate.metric])
    if inconsistent or (gate.metric == "recall" and not _complete(counts)):
        return f"{gate.metric} could not be evaluated: the counts of samples are missing or contradict each other"
    return ""


def _unfit(output: OutputDrift) -> str:
    """Return the reason why labels are not evidence."""
    right = 100 * output.counts["unfit"] / max(output.counts.get("samples", 0), 1)
    return (
        f"the labels do not fit: FP32 itself is right on {right:.2f} % of samples, no better than guessing. Check the "
        "preprocessing; give the names of the scores in their order (--classes FILE); or say that the output is not "
        f"class scores (--kind {shlex.quote(output.output)}=values)"
    )


def _disagrees(result: GateResult, output: OutputDrift) -> bool:
    """Return whether the candidate demonstrably chooses other classes than the only one that FP32 chooses."""
    if result.metric == "miou":  # a single pixel of a second class would halve the mIoU
        return output.values.get("pixels", 0.0) < result.limit
    return result.verdict == "fail"


def _nothing_shown(gate: Gate, output: OutputDrift, why: str, *, default: bool) -> GateResult:
    """Return an inconclusive result for samples that cannot reveal a failure."""
    return GateResult(
        output=output.output,
        metric=gate.metric,
        value=output.values.get(gate.metric, math.nan),
        limit=gate.limit,
        verdict="inconclusive",
        reason=f"{why}: give more varied samples, or check that the model has its trained weights",
        default=default,
    )


def _consistent(counts: Mapping[str, int], needed: str) -> bool:
    """Return whether the counts are complete and consistent; those in an earlier report may be anything."""
    samples = counts.get("samples", 0)
    right = [counts[name] for name in _RIGHT if name in counts]
    return (
        needed in counts
        and samples > 0
        and all(0 <= count <= samples for name, count in counts.items() if name not in _OF_DECISIONS)
        and len(right) in (0, len(_RIGHT))
        and sum(right) <= samples
    )


def _complete(counts: Mapping[str, int]) -> bool:
    """Return whether the counts of decisions are complete and consistent."""
    decisions, kept, having, groups = (counts.get(name, -1) for name in _DECISIONS)
    return 0 < having <= decisions and 0 <= kept <= decisions and groups > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """A statement about a fraction of samples.

    `estimate` returns its bounds for any number of samples; `bounded` says what they are about if the text does not.
    `floor` means that the limit is a minimum.
    """

    text: str
    samples: int
    estimate: Callable[[int], Bounds]
    bounded: str = ""
    floor: bool = False


def _drop(gate: Gate, output: OutputDrift) -> GateResult:
    """Judge the drop in accuracy with labels, and the drop in agreement from 100 % without labels."""
    counts = output.counts
    samples = counts["samples"]
    if gate.metric == "top1" and "both" in counts:
        lost, gained = counts["only_fp32"], counts["only_candidate"]
        change = "does not change"
        if lost != gained:
            points = abs(lost - gained) * 100 / samples
            change = f"{'drops' if lost > gained else 'rises'} by {points:.2f} points"
        test = f", McNemar p {mcnemar(lost, gained):.2g}" if lost + gained else ""
        fp32, candidate = (100 * (counts["both"] + only) / samples for only in (lost, gained))
        text = f"top-1 accuracy {change} ({fp32:.2f} % -> {candidate:.2f} %{test})"
        bounded = " of the drop" if gained > lost else ""
        claim = _Claim(text=text, samples=samples, estimate=_scaled(drop, samples, lost, gained), bounded=bounded)
        return _settled(gate, output, claim)
    differing = samples - counts[_COUNTED[gate.metric]]
    text = f"{_DIFFERS[gate.metric]} on {100 * differing / samples:.2f} % of samples"
    return _settled(gate, output, _Claim(text=text, samples=samples, estimate=_scaled(share, samples, differing)))


def _accuracy(gate: Gate, output: OutputDrift) -> GateResult:
    """Judge the candidate's accuracy by a minimum."""
    samples, right = output.counts["samples"], output.counts["both"] + output.counts["only_candidate"]
    text = f"accuracy is {100 * right / samples:.2f} %"
    before = output.values.get("accuracy_fp32", math.inf)
    if before < gate.limit:
        text += f", that of FP32 itself {before:.2f} %"
    claim = _Claim(text=text, samples=samples, estimate=_scaled(share, samples, right), floor=True)
    return _settled(gate, output, claim)


def _recall(gate: Gate, output: OutputDrift) -> GateResult:
    """Judge the share of FP32's decisions for a class that the candidate keeps.

    It fails if the samples show that more is lost than the limit allows. If they show a quarter of that, and the value
    is beyond the limit, it is inconclusive. Less is the noise of borderline decisions: with many classes, the only
    sample of one of them is lost now and then. A class that FP32 rarely chooses cannot be shown to hold.
    """
    decisions, kept, having, groups = (output.counts[name] for name in _DECISIONS)
    loss, limit = lost(decisions, kept, having, groups), 1.0 - gate.limit / 100
    verdict: Verdict = "pass"
    if loss.value > limit:
        shown = loss.low > limit or not limit
        verdict = "fail" if shown else "inconclusive" if loss.low > limit * _NOISE else "pass"
    label = output.counts.get("class")
    whose = "all classes but the most frequent one keep" if label is None else f"class {label} keeps"
    low, high = 100 * (1.0 - loss.high), 100 * (1.0 - loss.low)
    reason = (
        f"{whose} {kept} of FP32's {counted(decisions, 'decision')}, in {counted(having, 'sample')}, "
        f"95 % bounds {low:.2f} to {high:.2f}, at least {gate.limit:g} %"
    )
    if loss.value > limit and verdict != "fail":
        reason += ": too few to tell" if verdict == "inconclusive" else ": so few may be borderline decisions"
    return GateResult(
        output=output.output,
        metric=gate.metric,
        value=100.0 * kept / decisions,
        limit=gate.limit,
        verdict=verdict,
        reason=reason,
        low=low,
        high=high,
    )


def _scaled(bounds: Callable[..., Bounds], samples: int, *hits: int) -> Callable[[int], Bounds]:
    """Return the bounds as a function of the number of samples, at the same rates of hits."""
    return lambda count: bounds(*(hit * count / samples for hit in hits), count)


def _settled(gate: Gate, output: OutputDrift, claim: _Claim) -> GateResult:
    """Return the verdict of the samples on a claim, with its bounds and the number of samples that would settle it."""
    bounds, limit = claim.estimate(claim.samples), gate.limit / 100
    verdict = settles(bounds, limit, floor=claim.floor)
    more = needed(claim.estimate, limit, floor=claim.floor) if verdict == "inconclusive" else 0
    value, low, high = (round(100 * number, 12) for number in (bounds.value, bounds.low, bounds.high))
    bound = "at least" if claim.floor else "limit"
    shown = " to ".join(_digits(number, gate.limit, ".{}f", 2) for number in (low, high))
    reason = f"{claim.text}, 95 % bounds{claim.bounded} {shown}, {bound} {gate.limit:g} %"
    if verdict == "inconclusive":
        settle = f"about {more} would settle it" if more else "the value is at the limit"
        few = f"{counted(claim.samples, 'sample')} {'is' if claim.samples == 1 else 'are'} too few"
        reason += f": {few} to tell, {settle}"
    return GateResult(
        output=output.output,
        metric=gate.metric,
        value=value,
        limit=gate.limit,
        verdict=verdict,
        reason=reason,
        low=low,
        high=high,
        needed=more,
    )


def _level(gate: Gate, output: OutputDrift) -> GateResult:
    """Judge a value without sampling error by its limit."""
    value = output.values[gate.metric]
    unit = f" {METRICS[gate.metric].unit}".rstrip() if gate.metric in METRICS else ""
    shown = _digits(value, gate.limit, ".{}g", 5)
    # Both comparisons are false for NaN, so it fails. An infinite SQNR passes: the outputs are identical. An infinite
    # custom metric fails, because its meaning is unknown.
    passed = value <= gate.limit if gate.sense == "at most" else value >= gate.limit
    passed &= gate.metric in METRICS or math.isfinite(value)
    return GateResult(
        output=output.output,
        metric=gate.metric,
        value=value,
        limit=gate.limit,
        verdict="pass" if passed else "fail",
        reason=f"{gate.metric} is {shown}{unit}, must be {gate.sense} {gate.limit:.12g}{unit}",
    )


def _digits(value: float, limit: float, style: str, digits: int) -> str:
    """Return the value with enough digits to show on which side of the limit it is."""
    for count in range(digits, 18):
        text = format(value, style.format(count))
        if not math.isfinite(value) or (float(text) > limit, float(text) < limit) == (value > limit, value < limit):
            return text
    return repr(value)
