"""Default gates, and the evaluation of gates.

A gate on a fraction of samples passes if the samples *show* that it holds, and fails if they show that it does not. It
is inconclusive if there are too few samples to decide, or if the samples cannot reveal a failure: agreement on samples
of a single class shows nothing. A gate that cannot be evaluated fails. Any NaN fails, whatever the gates, and so does
an infinity that FP32 does not have.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trtopt.compare.catalog import METRICS
from trtopt.compare.defaults import DEFAULTS, FLOORS, WHERE_MEASURED
from trtopt.compare.gates import Gate, parse_gates
from trtopt.compare.gates import gate as default_gate
from trtopt.compare.statistics import Bounds, drop, mcnemar, needed, settles, share
from trtopt.types import Comparison, GateResult, OutputDrift, Verdict

_COUNTED = {"top1": "agree", "top5": "top5", "accuracy": "both", "same": "same"}
"""Metrics that are computed from counts, and the count that each of them needs."""

_DIFFERS = {
    "top1": "top-1 differs from FP32",
    "top5": "FP32's top-1 is not among the candidate's top 5",
    "same": "most elements differ from FP32",
}
"""The meaning of a drop from 100 % of the samples, in words."""

_RIGHT = ("both", "only_fp32", "only_candidate")
"""Counts of the samples on which both models or only one are right: an output has either all of them or none."""

_AGREEMENT = frozenset({"top1", "top5", "accuracy", "pixels", "miou", "miou_min", "equal", "same"})
"""Metrics that show nothing if FP32 chooses the same class for all samples."""

_NAMED = 3


def judged(comparison: Comparison, gates: str) -> Comparison:
    """Return the comparison with its verdict, gate results and remarks; `gates` is the user's text.

    Raises:
        UsageError: the gates do not parse.
    """
    results = judge(comparison.outputs, parse_gates(gates), comparison.samples)
    remarks = (*_ungated(comparison.outputs, results), *_farthest(comparison.outputs, results))
    return replace(comparison, gates=results, verdict=verdict(results), remarks=remarks)


def verdict(results: Iterable[GateResult | Comparison]) -> Verdict:
    """Return the worst of the verdicts, or `fail` if there are none."""
    verdicts = {result.verdict for result in results}
    if not verdicts or not verdicts <= {"pass", "inconclusive"}:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def judge(
    outputs: Sequence[OutputDrift], gates: Sequence[Gate], samples: int, *, defaults: bool = True
) -> tuple[GateResult, ...]:
    """Return the results of the gates on the outputs.

    With `defaults`, an output without a gate of the user is judged by the default gates of its kind. One with such a
    gate keeps those of them that tell a ruined output, unless the user has a limit for the same metric. The result has
    at least one entry, and a failed one for everything that could not be judged.
    """
    if any("both" in output.counts for output in outputs):  # the labels belong to another output
        outputs = [_without_unfit(output) for output in outputs]
    results = [_nonfinite(output, samples) for output in outputs if output.values.get("nonfinite")]
    if not samples:
        results.append(_unjudged("", "samples", 1.0, "there are no samples"))
    elif not outputs:
        results.append(_unjudged("", "outputs", 1.0, "there are no outputs"))
    for gate in gates:
        applicable = [output for output in outputs if _applies(gate, output)]
        results += [_evaluate(gate, output) for output in applicable]
        if not applicable:
            reason = f"{gate.metric} could not be evaluated: {_why_unable(gate, outputs)}"
            results.append(_unjudged(gate.output, gate.metric, gate.limit, reason))
    for output in outputs if defaults else ():
        results += _defaults(output, {gate.metric for gate in gates if _applies(gate, output)})
    return tuple(results)


def _applies(gate: Gate, output: OutputDrift) -> bool:
    """Return whether the gate is for this output, and the output has its metric."""
    known = gate.metric in output.values or (gate.metric == "matched" and _finds_nothing(output))
    return known and gate.output in ("", output.output)


def _defaults(output: OutputDrift, asked: Collection[str]) -> list[GateResult]:
    """Return the results of the default gates on an output that the user has gates on the metrics `asked` for."""
    results = []
    for metric, limit in DEFAULTS.get(output.kind, ()):
        if metric in asked or (asked and metric not in FLOORS):
            continue
        if metric in output.values or metric not in WHERE_MEASURED:
            results.append(_evaluate(default_gate(metric, limit), output, default=True))
    return results


def _finds_nothing(output: OutputDrift) -> bool:
    """Return whether FP32 finds no boxes on any of the samples."""
    return output.counts.get("boxes") == 0 and output.counts.get("samples", 0) > 0


def _without_unfit(output: OutputDrift) -> OutputDrift:
    """Return the output without the remark that the labels do not fit it."""
    return replace(
        output, counts={name: count for name, count in output.counts.items() if name not in ("unfit", "contradicted")}
    )


def _why_unable(gate: Gate, outputs: Sequence[OutputDrift]) -> str:
    """Return why the gate applies to none of the outputs."""
    if not outputs:
        return "nothing was compared"
    kinds = [f"{output.output} ({output.kind})" for output in outputs if gate.output in ("", output.output)]
    if not kinds:
        return f"unknown output {gate.output}; the outputs are {', '.join(output.output for output in outputs)}"
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


def _evaluate(gate: Gate, output: OutputDrift, *, default: bool = False) -> GateResult:
    """Return the result of a gate that applies to the output; `default` says that it is a default gate."""
    if gate.metric == "matched" and _finds_nothing(output):
        why = "FP32 finds no boxes on these samples, so none can be missed"
        return _nothing_shown(gate, output, why, default=default)
    reason = _why_not_evaluated(gate, output)
    if reason:
        return _unjudged(output.output, gate.metric, gate.limit, reason, default=default)
    if gate.sense == "drop":
        result = _drop(gate, output)
    elif gate.metric == "accuracy":
        result = _accuracy(gate, output)
    else:
        result = _level(gate, output)
    if gate.metric == "top1" and "unfit" in output.counts and not output.counts.get("contradicted"):
        return _nothing_shown(gate, output, _unfit(output), default=default)
    if gate.metric == "r2" and output.counts.get("harmless") and result.verdict == "fail":
        why = "FP32's probabilities hardly vary, and errors stay below 0.05: nothing shows that they follow the samples"
        return _nothing_shown(gate, output, why, default=default)
    if gate.metric in _AGREEMENT and output.counts.get("chosen") == 1 and not _disagrees(result, output):
        why = "FP32 always chooses the same class, so agreement shows nothing"
        return _nothing_shown(gate, output, why, default=default)
    return replace(result, default=default)


def _why_not_evaluated(gate: Gate, output: OutputDrift) -> str:
    """Return why the output's values and counts do not allow an evaluation, or an empty string."""
    counts = output.counts
    if gate.metric not in output.values:
        return f"{gate.metric} could not be evaluated on this output"
    if gate.metric == "top1" and "unfit" in counts and counts.get("contradicted"):
        return _unfit(output)
    if gate.metric in _COUNTED and not _consistent(counts, _COUNTED[gate.metric]):
        return f"{gate.metric} could not be evaluated: the counts of samples are missing or contradict each other"
    return ""


def _unfit(output: OutputDrift) -> str:
    """Return the reason why labels are not evidence."""
    right = 100 * output.counts["unfit"] / max(output.counts.get("samples", 0), 1)
    return (
        f"the labels do not fit: FP32 itself is right on {right:.2f} % of samples, no better than guessing "
        "(another order of classes, or another preprocessing?); without labels, agreement would be judged"
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
        and all(0 <= count <= samples for count in counts.values())
        and len(right) in (0, len(_RIGHT))
        and sum(right) <= samples
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """A statement about a fraction of samples.

    `estimate` returns its bounds for any number of samples. `floor` means that the limit is a minimum.
    """

    text: str
    samples: int
    estimate: Callable[[int], Bounds]
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
        claim = _Claim(text=text, samples=samples, estimate=_scaled(drop, samples, lost, gained))
        return _settled(gate, output, claim)
    differing = samples - counts[_COUNTED[gate.metric]]
    text = f"{_DIFFERS[gate.metric]} on {100 * differing / samples:.2f} % of samples"
    return _settled(gate, output, _Claim(text=text, samples=samples, estimate=_scaled(share, samples, differing)))


def _accuracy(gate: Gate, output: OutputDrift) -> GateResult:
    """Judge the candidate's accuracy by a minimum."""
    samples, right = output.counts["samples"], output.counts["both"] + output.counts["only_candidate"]
    text = f"accuracy is {100 * right / samples:.2f} %"
    claim = _Claim(text=text, samples=samples, estimate=_scaled(share, samples, right), floor=True)
    return _settled(gate, output, claim)


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
    reason = f"{claim.text}, 95 % bounds {shown}, {bound} {gate.limit:g} %"
    if verdict == "inconclusive":
        settle = f"about {more} would settle it" if more else "the value is at the limit"
        reason += f": {claim.samples} samples are too few to tell, {settle}"
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


def _ungated(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Return a remark on outputs without a gate. Custom metrics have no default gates."""
    judged = {gate.output for gate in gates}
    free = [output.output for output in outputs if output.output not in judged]
    if not free:
        return []
    return [f"{', '.join(free)} {'has' if len(free) == 1 else 'have'} no gate and did not affect the verdict"]


def _farthest(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Return, per output with a gate that did not pass, a remark with the samples to look at first."""
    failed = {gate.output for gate in gates if not gate.passed}
    worst = {output.output: output.worst[:_NAMED] for output in outputs if output.output in failed}
    return [
        f"output {name} has its lowest SQNR in {', '.join(worst.sample for worst in samples)}"
        for name, samples in worst.items()
        if samples
    ]
