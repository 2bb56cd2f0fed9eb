"""Gates: the default ones, and whether a gate holds.

A gate on a share of samples passes when the samples *show* that it holds, fails when they show that it does not, and is
inconclusive when they are too few to tell, or when nothing could go wrong on them: agreement on samples of one class
shows nothing. A gate that cannot be evaluated fails. NaN fails whatever the gates are, and so do infinities that FP32
does not have.

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

_LEAST_DB = 8.0
"""SQNR of the worst sample: its error has 40 % of the signal's RMS, and its cosine with FP32 may be 0.917."""

DEFAULTS = {
    # One point of top-1 is near what MLPerf Inference allows (99 % of FP32's accuracy). Few samples do not settle it:
    # the cosine of all scores (0.98 is an SQNR of about 14 dB) and the worst sample stand on any number of them.
    "scores": (("top1", 1.0), ("cosine", 0.98), ("sqnr_min", _LEAST_DB)),
    # A cosine of 0.99 turns an embedding by 8 degrees. Pooled, it hides a ruined sample, a part of small scale, and
    # that an output of large mean does not vary any more: each has a limit of its own.
    "values": (("cosine", 0.99), ("cosine_part", 0.99), ("r2", 0.8), ("sqnr_min", _LEAST_DB)),
    # An integer output (token ids) may move, but rarely.
    "exact": (("equal", 99.0),),
    # In mIoU a small class weighs as much as the background, which hides its loss in the share of pixels. A text
    # detector keeps 99.96 % in FP16, and 98.7 % in INT8 with its output at 18.6 dB.
    "segmentation": (("miou", 98.0), ("pixels_min", 90.0), ("sqnr_min", _LEAST_DB)),
    # One box in a hundred, as with classes, lost or made up: a candidate that finds boxes everywhere finds FP32's, too.
    "detection": (("matched", 99.0), ("extra", 1.0)),
}
"""Metrics and limits of each kind of output that has defaults."""

_WHERE_MEASURED = frozenset({"cosine_part", "r2", "sqnr_min", "pixels_min"})
"""Metrics that an output of such a kind need not have: others that are missing fail."""

_COUNTED = {"top1": "agree", "top5": "top5", "accuracy": "both"}
_RIGHT = ("both", "only_fp32", "only_candidate")
"""Metrics that rest on counts, and which; and the counts of who was right, which come together."""

_AGREEMENT = frozenset({"top1", "top5", "accuracy", "pixels", "pixels_min", "miou"})
"""Metrics that show nothing where FP32 chooses one class for everything."""

_NAMED = 3


def judged(comparison: Comparison, gates: str) -> Comparison:
    """Return the comparison with its gates (as the user wrote them), its verdict, and remarks.

    Raises:
        UsageError: the gates do not parse.
    """
    results = judge(comparison.outputs, parse_gates(gates), comparison.samples)
    remarks = (*_ungated(comparison.outputs, results), *_farthest(comparison.outputs, results))
    return replace(comparison, gates=results, verdict=verdict(results), remarks=remarks)


def verdict(results: Iterable[GateResult | Comparison]) -> Verdict:
    """Return the worst of the verdicts, and `fail` when nothing was judged."""
    found = {result.verdict for result in results}
    if not found or not found <= {"pass", "inconclusive"}:
        return "fail"
    return "inconclusive" if "inconclusive" in found else "pass"


def judge(outputs: Sequence[OutputDrift], gates: Sequence[Gate], samples: int) -> tuple[GateResult, ...]:
    """Judge the outputs by the gates; an output that none of them is on is judged by the defaults of its kind.

    The result has at least one gate, and a failed one wherever something could not be judged.
    """
    if any("both" in output.counts for output in outputs):  # the labels are those of another output
        outputs = [_without_unfit(output) for output in outputs]
    results = [_nonfinite(output, samples) for output in outputs if output.values.get("nonfinite")]
    if not samples:
        results.append(_unjudged("", "samples", 1.0, "there was not one sample to compare on"))
    elif not outputs:
        results.append(_unjudged("", "outputs", 1.0, "there was not one output to compare"))
    judged_by_user = {output.output for each in gates for output in outputs if _applies(each, output)}
    for output in outputs:
        if output.output not in judged_by_user:
            results += _defaults(output)
    for each in gates:
        able = [output for output in outputs if _applies(each, output)]
        results += [_hold(each, output) for output in able]
        if not able:
            reason = f"{each.metric} could not be evaluated: {_why_unable(each, outputs)}"
            results.append(_unjudged(each.output, each.metric, each.limit, reason))
    return tuple(results)


def _applies(gate: Gate, output: OutputDrift) -> bool:
    known = gate.metric in output.values or (gate.metric == "matched" and _finds_nothing(output))
    return known and gate.output in ("", output.output)


def _defaults(output: OutputDrift) -> list[GateResult]:
    limits = DEFAULTS.get(output.kind, ())
    measured = [each for each in limits if each[0] in output.values or each[0] not in _WHERE_MEASURED]
    return [_hold(gate(metric, limit), output, default=True) for metric, limit in measured]


def _finds_nothing(output: OutputDrift) -> bool:
    """Return whether FP32 finds no box on any of the samples."""
    return output.counts.get("boxes") == 0 and output.counts.get("samples", 0) > 0


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
    if gate.metric == "matched" and _finds_nothing(output):
        return _nothing_shown(gate, output, "FP32 finds no box on these samples, so none can be lost", default=default)
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
    if gate.metric in _AGREEMENT and output.counts.get("chosen") == 1 and not _disagrees(result, output):
        why = "FP32 chooses one and the same class everywhere, so agreement shows nothing"
        return _nothing_shown(gate, output, why, default=default)
    return replace(result, default=default)


def _disagrees(result: GateResult, output: OutputDrift) -> bool:
    """Return whether a candidate is shown to choose other classes than the one that FP32 always chooses."""
    if result.metric == "miou":  # one stray pixel of a second class halves it
        return output.values.get("pixels", 0.0) < result.limit
    return result.verdict == "fail"


def _nothing_shown(gate: Gate, output: OutputDrift, why: str, *, default: bool) -> GateResult:
    return GateResult(
        output=output.output,
        metric=gate.metric,
        value=output.values.get(gate.metric, math.nan),
        limit=gate.limit,
        verdict="inconclusive",
        reason=f"{why}: give samples on which FP32 finds something, or check that the model has its weights",
        default=default,
    )


def _possible(counts: Mapping[str, int], needed: str) -> bool:
    """Return whether a metric can rest on these counts: a report that is judged again may hold any numbers."""
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
    """A statement about a share: its text, its bounds at any number of samples, and whether the limit is a floor."""

    text: str
    samples: int
    estimate: Callable[[int], Bounds]
    floor: bool = False


def _drop(gate: Gate, output: OutputDrift) -> GateResult:
    """Judge a drop of accuracy where there are labels, else a drop of agreement from 100 %."""
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
    """Return the bounds as a function of the number of samples, with the same shares of hits."""
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
    """Return the value with as many digits as it takes to see on which side of the limit it is."""
    for count in range(digits, 18):
        text = format(value, style.format(count))
        if not math.isfinite(value) or (float(text) > limit, float(text) < limit) == (value > limit, value < limit):
            return text
    return repr(value)


def _ungated(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Return a remark on the outputs without a gate: those of a user's metrics have no defaults."""
    judged = {gate.output for gate in gates}
    free = [output.output for output in outputs if output.output not in judged]
    return [f"{', '.join(free)} {'has' if len(free) == 1 else 'have'} no gate and decided nothing"] if free else []


def _farthest(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Return a remark that names the samples to look at first where a gate did not pass."""
    failed = {gate.output for gate in gates if not gate.passed}
    worst = {output.output: output.worst[:_NAMED] for output in outputs if output.output in failed}
    return [
        f"output {name} has its lowest SQNR in {', '.join(each.sample for each in samples)}"
        for name, samples in worst.items()
        if samples
    ]
