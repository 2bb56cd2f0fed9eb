"""Thresholds: what they are when nobody wrote any, and whether they hold.

A threshold on a share of samples passes when the samples *show* that it holds, fails when they show that it does not,
and is inconclusive when there are too few of them to tell. One that cannot be evaluated fails. NaN and Inf fail,
whatever the thresholds are.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trtopt.compare.catalog import METRICS
from trtopt.compare.limits import Gate, gate, parse_gates
from trtopt.compare.statistics import Bounds, drop, mcnemar, needed, settles, share
from trtopt.types import Comparison, GateResult, OutputDrift, Verdict

DEFAULTS = {
    # One point of top-1 is near what MLPerf Inference allows (99 % of FP32's accuracy); cosine 0.99 turns an embedding
    # by 8 degrees; an integer output (token ids) may move, but rarely.
    "scores": (("top1", 1.0),),
    "values": (("cosine", 0.99),),
    "exact": (("equal", 99.0),),
    # In mIoU a small class weighs as much as the background, which hides its loss in the share of pixels. A text
    # detector keeps 99.96 % in FP16, and 98.7 % in INT8 with its output at 18.6 dB.
    "segmentation": (("miou", 98.0),),
    # One box in a hundred, as with classes, lost or made up: a candidate that finds boxes everywhere finds FP32's, too.
    "detection": (("matched", 99.0), ("extra", 1.0)),
}
"""Metrics and limits of each kind of output that has defaults."""

_COUNTED = {"top1": "agree", "top5": "top5", "accuracy": "both"}
_RIGHT = ("both", "only_fp32", "only_candidate")
"""Metrics that rest on counts, and which; and the counts of who was right, which come together."""

_NAMED = 3


def judged(comparison: Comparison, gates: str) -> Comparison:
    """The comparison with its gates (as the user wrote them; the defaults when blank), its verdict, and remarks.

    Raises:
        UsageError: the gates do not parse.
    """
    results = judge(comparison.outputs, parse_gates(gates), comparison.samples)
    remarks = (*_ungated(comparison.outputs, results), *_farthest(comparison.outputs, results))
    return replace(comparison, gates=results, verdict=verdict(results), remarks=remarks)


def verdict(results: Iterable[GateResult | Comparison]) -> Verdict:
    """One verdict of all: the worst of them, and `fail` when nothing was judged."""
    found = {result.verdict for result in results}
    if not found or not found <= {"pass", "inconclusive"}:
        return "fail"
    return "inconclusive" if "inconclusive" in found else "pass"


def judge(outputs: Sequence[OutputDrift], gates: Sequence[Gate], samples: int) -> tuple[GateResult, ...]:
    """Hold every gate, or the defaults when there are none, against the outputs.

    The result holds at least one gate, and a failed one wherever something could not be judged.
    """
    if any("both" in output.counts for output in outputs):  # the labels are those of another output
        outputs = [_without_unfit(output) for output in outputs]
    results = [_nonfinite(output, samples) for output in outputs if output.values.get("nonfinite")]
    if not samples:
        results.append(_unjudged("", "samples", 1.0, "there was not one sample to compare on"))
    elif not outputs:
        results.append(_unjudged("", "outputs", 1.0, "there was not one output to compare"))
    if not gates:
        known = [(output, *each) for output in outputs for each in DEFAULTS.get(output.kind, ())]
        results += [_hold(gate(metric, limit), output, default=True) for output, metric, limit in known]
    for each in gates:
        named = [output for output in outputs if each.output in ("", output.output)]
        able = [output for output in named if each.metric in output.values]
        results += [_hold(each, output) for output in able]
        if not able:
            reason = f"{each.metric} could not be evaluated: {_why_unable(each, outputs)}"
            results.append(_unjudged(each.output, each.metric, each.limit, reason))
    return tuple(results)


def _without_unfit(output: OutputDrift) -> OutputDrift:
    return replace(output, counts={name: count for name, count in output.counts.items() if name != "unfit"})


def _why_unable(gate: Gate, outputs: Sequence[OutputDrift]) -> str:
    if not outputs:
        return "nothing was compared"
    kinds = [f"{output.output} ({output.kind})" for output in outputs if gate.output in ("", output.output)]
    if not kinds:
        return f"there is no output {gate.output}, only {', '.join(output.output for output in outputs)}"
    what = "labels that fit" if gate.metric.startswith("accuracy") else "this metric"
    return f"{', '.join(kinds)} {'does' if len(kinds) == 1 else 'do'} not have {what}"


def _nonfinite(output: OutputDrift, samples: int) -> GateResult:
    bad = output.values["nonfinite"]
    reason = f"NaN or Inf in {bad:.0f} of {samples} samples, first in {output.first_bad}"
    return GateResult(
        output=output.output, metric="nonfinite", value=bad, limit=0.0, verdict="fail", reason=reason, default=True
    )


def _unjudged(output: str, metric: str, limit: float, reason: str, *, default: bool = False) -> GateResult:
    return GateResult(
        output=output, metric=metric, value=math.nan, limit=limit, verdict="fail", reason=reason, default=default
    )


def _hold(gate: Gate, output: OutputDrift, *, default: bool = False) -> GateResult:
    reason = ""
    if gate.metric not in output.values:
        reason = f"{gate.metric} could not be evaluated on this output"
    elif gate.metric == "top1" and "unfit" in output.counts and output.counts.get("samples"):
        right = 100 * output.counts["unfit"] / output.counts["samples"]
        reason = (
            f"the labels do not fit: FP32 itself is right on {right:.2f} % of samples, no better than guessing (labels "
            "in another order, or inputs prepared in another way?); without labels, agreement would be judged"
        )
        return _unjudged(output.output, gate.metric, gate.limit, reason, default=default)
    elif gate.metric in _COUNTED and not _possible(output.counts, _COUNTED[gate.metric]):
        reason = f"{gate.metric} could not be evaluated: the counts of samples are missing or contradict each other"
    if reason:
        return _unjudged(output.output, gate.metric, gate.limit, reason, default=default)
    if gate.sense == "drop":
        result = _drop(gate, output)
    elif gate.metric == "accuracy":
        result = _accuracy(gate, output)
    else:
        result = _level(gate, output)
    return replace(result, default=default)


def _possible(counts: Mapping[str, int], needed: str) -> bool:
    """Whether a metric that needs one of these counts can rest on them: a report that is judged again may hold any."""
    samples = counts.get("samples", 0)
    right = [counts[name] for name in _RIGHT if name in counts]
    return (
        needed in counts
        and samples > 0
        and all(0 <= count <= samples for count in counts.values())
        and len(right) in (0, len(_RIGHT))
        and sum(right) <= samples
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What is said of a share: in words, its bounds at any number of samples, and whether the limit is a floor."""

    text: str
    samples: int
    estimate: Callable[[int], Bounds]
    floor: bool = False


def _drop(gate: Gate, output: OutputDrift) -> GateResult:
    """A drop of accuracy with labels, of agreement from 100 % without."""
    counts = output.counts
    samples = counts["samples"]
    if gate.metric == "top1" and "both" in counts:
        before, after = counts["only_fp32"], counts["only_candidate"]
        points = f"{abs(before - after) * 100 / samples:.2f} points"
        moved = "does not change" if before == after else f"{'drops' if before > after else 'rises'} by {points}"
        test = f", McNemar p {mcnemar(before, after):.2g}" if before + after else ""
        fp32, candidate = (100 * (counts["both"] + only) / samples for only in (before, after))
        text = f"top-1 accuracy {moved} ({fp32:.2f} % -> {candidate:.2f} %{test})"
        return _settled(
            gate, output, _Claim(text=text, samples=samples, estimate=_scaled(drop, samples, before, after))
        )
    hits = samples - counts["agree" if gate.metric == "top1" else "top5"]
    what = "top-1 differs from FP32" if gate.metric == "top1" else "FP32's top-1 is not among the candidate's top 5"
    text = f"{what} on {100 * hits / samples:.2f} % of samples"
    return _settled(gate, output, _Claim(text=text, samples=samples, estimate=_scaled(share, samples, hits)))


def _accuracy(gate: Gate, output: OutputDrift) -> GateResult:
    samples, right = output.counts["samples"], output.counts["both"] + output.counts["only_candidate"]
    text = f"accuracy is {100 * right / samples:.2f} %"
    claim = _Claim(text=text, samples=samples, estimate=_scaled(share, samples, right), floor=True)
    return _settled(gate, output, claim)


def _scaled(bounds: Callable[..., Bounds], samples: int, *hits: int) -> Callable[[int], Bounds]:
    """The bounds as they would be with another number of samples, of which the same shares are hits."""
    return lambda count: bounds(*(each * count / samples for each in hits), count)


def _settled(gate: Gate, output: OutputDrift, claim: _Claim) -> GateResult:
    bounds, limit = claim.estimate(claim.samples), gate.limit / 100
    found = settles(bounds, limit, floor=claim.floor)
    more = needed(claim.estimate, limit, floor=claim.floor) if found == "inconclusive" else 0
    value, low, high = (round(100 * number, 12) for number in (bounds.value, bounds.low, bounds.high))
    bound = "at least" if claim.floor else "limit"
    shown = " to ".join(_digits(number, gate.limit, ".{}f", 2) for number in (low, high))
    reason = f"{claim.text}, 95 % bounds {shown}, {bound} {gate.limit:g} %"
    if found == "inconclusive":
        settle = f"about {more} would settle it" if more else "it lies at the limit"
        reason += f": {claim.samples} samples are too few to tell, {settle}"
    return GateResult(
        output=output.output,
        metric=gate.metric,
        value=value,
        limit=gate.limit,
        verdict=found,
        reason=reason,
        low=low,
        high=high,
        needed=more,
    )


def _level(gate: Gate, output: OutputDrift) -> GateResult:
    value = output.values[gate.metric]
    unit = f" {METRICS[gate.metric].unit}".rstrip() if gate.metric in METRICS else ""
    shown = _digits(value, gate.limit, ".{}g", 5)
    # Written so that NaN fails. An infinite SQNR is that of identical outputs; of a user's metric it says nothing good.
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
    """The value with as many digits as it takes to see on which side of the limit it is."""
    for count in range(digits, 18):
        text = format(value, style.format(count))
        if not math.isfinite(value) or (float(text) > limit, float(text) < limit) == (value > limit, value < limit):
            return text
    return repr(value)


def _ungated(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Say which outputs the user's gates leave alone: a pass says nothing of them."""
    held = {gate.output for gate in gates}
    free = [output.output for output in outputs if output.output not in held]
    return [f"no gate looks at output {', '.join(free)}: it may be anything"] if free else []


def _farthest(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Name the samples to look at first where a gate failed."""
    failed = {gate.output for gate in gates if not gate.passed}
    worst = {output.output: output.worst[:_NAMED] for output in outputs if output.output in failed}
    return [
        f"output {name} is farthest from FP32 in {', '.join(each.sample for each in samples)}"
        for name, samples in worst.items()
        if samples
    ]
