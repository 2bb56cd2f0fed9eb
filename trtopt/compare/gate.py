"""Thresholds: how they are written, what they are when nobody wrote any, and whether they hold.

A threshold that cannot be evaluated fails. NaN and Inf fail, whatever the thresholds are.

Touches: nothing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtopt.compare.metrics import METRICS
from trtopt.errors import UsageError
from trtopt.types import GateResult, OutputDrift

DROPS = {"top1", "top5"}
"""The limit is the largest drop allowed, in points: of accuracy with labels, of agreement (from 100 %) without."""

_ROUNDING = 1e-9
"""Added to the limit of a drop: 99.2 - 98.3 is 0.9000000000000057, and a drop of exactly the limit holds. One sample of
a billion weighs a hundred times as much."""

CEILINGS = {"rmse", "max_abs", "mean_abs"}
"""The limit is the largest value allowed; for all other metrics it is the smallest."""

UNITS = {"top1": "%", "top5": "%", "accuracy_fp32": "%", "accuracy": "%", "equal": "%", "sqnr": "dB"}
"""The unit that a limit may be written with; metrics not named here have none."""

DEFAULTS = {
    # One point of top-1 is near what MLPerf Inference allows (99 % of FP32's accuracy); cosine 0.99 turns an embedding
    # by 8 degrees; an integer output (boxes, token ids) may move, but rarely.
    "scores": ("top1", 1.0),
    "values": ("cosine", 0.99),
    "exact": ("equal", 99.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """`limit` for `metric`, of one output or (`output` empty) of every output that has the metric."""

    metric: str
    limit: float
    output: str = ""


def parse_gates(text: str) -> tuple[Gate, ...]:
    """Parse `top1=1%,cosine=0.99,logits:sqnr=20`; a blank text gives no gates.

    Raises:
        UsageError: a part does not parse, names no metric, or has a limit that cannot be meant.
    """
    return tuple(_parse(part.strip()) for part in text.split(",")) if text.strip() else ()


def _parse(part: str) -> Gate:
    target, equals, number = part.rpartition("=")
    output, _, metric = (text.strip() for text in target.rpartition(":"))
    if not equals or not metric:
        raise UsageError(f"--gate {part!r} does not parse", fix="Write METRIC=LIMIT, such as top1=1% or cosine=0.99")
    known = [name for name in METRICS if name != "nonfinite"]
    if metric not in known:
        near = difflib.get_close_matches(metric, known, 1)
        raise UsageError(
            f"--gate names an unknown metric {metric!r}",
            fix=f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(known)}",
        )
    unit = UNITS.get(metric, "")
    digits = number.strip().removesuffix(unit)
    try:
        limit = float(digits)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        example = {"%": "1%", "dB": "20dB"}.get(unit, "0.99")
        raise UsageError(
            f"--gate {part!r} has no limit",
            why=f"{number.strip()!r} is no number" + (f" of {unit}" if unit else ", and takes no unit"),
            fix=f"Write {metric}={example}",
        )
    _check_meaning(metric, limit, part, with_unit=digits != number.strip())
    return Gate(metric=metric, limit=limit, output=output)


def _check_meaning(metric: str, limit: float, part: str, *, with_unit: bool) -> None:
    """Refuse limits that say something else than their writer means, for such a gate holds always, or never."""
    why = ""
    if metric in DROPS and not 0 <= limit < 50:
        why = f"{metric} takes the largest drop allowed, in points from 0 to 50"
        fix = f"Write {metric}={100 - limit:g}%" if 50 <= limit <= 100 else f"Write {metric}=1%"
    elif metric in CEILINGS and limit < 0:
        why, fix = f"{metric} is never negative", f"Write {metric}=0.01"
    elif metric == "cosine" and not -1 <= limit <= 1:
        why, fix = "a cosine lies between -1 and 1", "Write cosine=0.99"
    elif UNITS.get(metric) == "%" and metric not in DROPS:
        if not 0 <= limit <= 100:
            why, fix = f"{metric} is a percentage", f"Write {metric}=99%"
        elif 0 < limit <= 1 and not with_unit:
            why, fix = f"{metric} is in percent", f"Write {metric}={100 * limit:g}%, or {metric}={limit:g}% if so meant"
    if why:
        raise UsageError(f"--gate {part!r} cannot be meant", why=why, fix=fix)


def judge(
    outputs: Sequence[OutputDrift], gates: Sequence[Gate], samples: int, first_bad: Mapping[str, str]
) -> tuple[GateResult, ...]:
    """Hold every gate, or the defaults when there are none, against the outputs.

    `first_bad` names the first sample with a NaN or Inf, by output. The result holds at least one gate, and a failed
    one wherever something could not be judged.
    """
    results = [_nonfinite(output, samples, first_bad[output.output]) for output in outputs if _bad(output)]
    if not samples:
        results.append(_unjudged("", "samples", 1.0, "there was not one sample to compare on"))
    elif not outputs:
        results.append(_unjudged("", "outputs", 1.0, "there was not one output to compare"))
    if not gates:
        for output in outputs:
            metric, limit = DEFAULTS[output.kind]
            results.append(_hold(Gate(metric=metric, limit=limit), output, default=True))
    for gate in gates:
        named = [output for output in outputs if gate.output in ("", output.output)]
        able = [output for output in named if gate.metric in output.values]
        results += [_hold(gate, output) for output in able]
        if not able:
            reason = f"{gate.metric} could not be evaluated: {_why_unable(gate, outputs)}"
            results.append(_unjudged(gate.output, gate.metric, gate.limit, reason))
    return tuple(results)


def _why_unable(gate: Gate, outputs: Sequence[OutputDrift]) -> str:
    if not outputs:
        return "nothing was compared"
    kinds = [f"{output.output} ({output.kind})" for output in outputs if gate.output in ("", output.output)]
    if not kinds:
        return f"there is no output {gate.output}, only {', '.join(output.output for output in outputs)}"
    what = "labels that fit" if gate.metric.startswith("accuracy") else "this metric"
    return f"{', '.join(kinds)} {'has' if len(kinds) == 1 else 'have'} not {what}"


def _bad(output: OutputDrift) -> float:
    return output.values.get("nonfinite", 0.0)


def _nonfinite(output: OutputDrift, samples: int, first: str) -> GateResult:
    return GateResult(
        output=output.output,
        metric="nonfinite",
        value=_bad(output),
        limit=0.0,
        passed=False,
        reason=f"NaN or Inf in {_bad(output):.0f} of {samples} samples, first in {first}",
        default=True,
    )


def _unjudged(output: str, metric: str, limit: float, reason: str, *, default: bool = False) -> GateResult:
    return GateResult(
        output=output, metric=metric, value=math.nan, limit=limit, passed=False, reason=reason, default=default
    )


def _hold(gate: Gate, output: OutputDrift, *, default: bool = False) -> GateResult:
    values = output.values
    if gate.metric not in values:
        reason = f"{gate.metric} could not be evaluated on this output"
        return _unjudged(output.output, gate.metric, gate.limit, reason, default=default)
    value, reason = _drop(gate, values) if gate.metric in DROPS else _level(gate, values)
    # Written so that NaN fails.
    if gate.metric in DROPS:
        passed = value <= gate.limit + _ROUNDING
    else:
        passed = value <= gate.limit if gate.metric in CEILINGS else value >= gate.limit
    return GateResult(
        output=output.output,
        metric=gate.metric,
        value=value,
        limit=gate.limit,
        passed=passed,
        reason=reason,
        default=default,
    )


def _drop(gate: Gate, values: Mapping[str, float]) -> tuple[float, str]:
    if gate.metric == "top1" and "accuracy" in values:
        before, after = values["accuracy_fp32"], values["accuracy"]
        drop = round(before - after, 12)
        change = f"({before:.2f} % -> {after:.2f} %), limit {gate.limit:g}"
        if not drop:
            return drop, f"top-1 accuracy does not change {change}"
        points = _digits(abs(drop), gate.limit, ".{}f", 2)
        return drop, f"top-1 accuracy {'drops' if drop > 0 else 'rises'} by {points} points {change}"
    drop = round(100.0 - values[gate.metric], 12)
    share = f"{_digits(drop, gate.limit, '.{}f', 2)} % of samples, limit {gate.limit:g} %"
    if gate.metric == "top1":
        return drop, f"top-1 differs from FP32 on {share}"
    return drop, f"FP32's top-1 is not among the candidate's top 5 on {share}"


def _level(gate: Gate, values: Mapping[str, float]) -> tuple[float, str]:
    value = values[gate.metric]
    unit = f" {UNITS[gate.metric]}" if gate.metric in UNITS else ""
    bound = "at most" if gate.metric in CEILINGS else "at least"
    shown = _digits(value, gate.limit, ".{}g", 5)
    return value, f"{gate.metric} is {shown}{unit}, must be {bound} {gate.limit:.12g}{unit}"


def _digits(value: float, limit: float, style: str, digits: int) -> str:
    """The value with as many digits as it takes to see on which side of the limit it is."""
    for count in range(digits, 18):
        text = format(value, style.format(count))
        if not math.isfinite(value) or (float(text) > limit, float(text) < limit) == (value > limit, value < limit):
            return text
    return repr(value)
