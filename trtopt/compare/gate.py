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

CEILINGS = {"rmse", "max_abs", "mean_abs", "nonfinite"}
"""The limit is the largest value allowed; for all other metrics it is the smallest."""

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
    """Parse `top1=1%,cosine=0.99,logits:sqnr=20`; an empty text gives no gates.

    Raises:
        UsageError: a part does not parse, or names no metric.
    """
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(part: str) -> Gate:
    target, equals, number = part.rpartition("=")
    output, _, metric = target.rpartition(":")
    if not equals or not metric:
        raise UsageError(f"--gate {part!r} does not parse", fix="Write METRIC=LIMIT, such as top1=1% or cosine=0.99")
    known = [name for name in METRICS if name != "nonfinite"]
    if metric not in known:
        near = difflib.get_close_matches(metric, known, 1)
        raise UsageError(
            f"--gate names an unknown metric {metric!r}",
            fix=f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(known)}",
        )
    try:
        limit = float(number.strip().removesuffix("%").removesuffix("dB"))
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"--gate {part!r} has no number", fix=f"Write {metric}=1% or {metric}=0.99")
    return Gate(metric=metric, limit=limit, output=output)


def judge(outputs: Sequence[OutputDrift], gates: Sequence[Gate], samples: int) -> tuple[GateResult, ...]:
    """Hold every gate, or the defaults when there are none, against the outputs.

    The result holds at least one gate, and a failed one wherever something could not be judged.
    """
    results = [result for output in outputs if (result := _nonfinite(output))]
    if not samples:
        results.append(_unjudged("", "samples", 1.0, "there was not one sample to compare on"))
    if not gates:
        for output in outputs:
            metric, limit = DEFAULTS[output.kind]
            results.append(_hold(Gate(metric=metric, limit=limit), output, default=True))
    for gate in gates:
        named = [output for output in outputs if gate.output in ("", output.output)]
        able = [output for output in named if gate.metric in output.values]
        results += [_hold(gate, output) for output in able]
        if not able:
            where = f"output {gate.output}" if gate.output else "no output"
            reason = f"{gate.metric} could not be evaluated: {where} {'lacks' if gate.output else 'has'} it"
            results.append(_unjudged(gate.output, gate.metric, gate.limit, reason))
    return tuple(results)


def _nonfinite(output: OutputDrift) -> GateResult | None:
    bad = output.values.get("nonfinite", 0.0)
    if not bad:
        return None
    return GateResult(
        output=output.output,
        metric="nonfinite",
        value=bad,
        limit=0.0,
        passed=False,
        reason=f"NaN or Inf in {bad:.0f} samples",
        default=True,
    )


def _unjudged(output: str, metric: str, limit: float, reason: str) -> GateResult:
    return GateResult(output=output, metric=metric, value=math.nan, limit=limit, passed=False, reason=reason)


def _hold(gate: Gate, output: OutputDrift, *, default: bool = False) -> GateResult:
    values = output.values
    if gate.metric not in values:
        reason = f"{gate.metric} could not be evaluated on this output"
        return _unjudged(output.output, gate.metric, gate.limit, reason)
    value, reason = _drop(gate, values) if gate.metric in DROPS else _level(gate, values)
    ceiling = gate.metric in DROPS or gate.metric in CEILINGS
    # Written so that NaN fails.
    passed = value <= gate.limit if ceiling else value >= gate.limit
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
        drop = before - after
        verb = "drops by" if drop > 0 else "rises by" if drop < 0 else "changes by"
        reason = f"top-1 accuracy {verb} {abs(drop):.2f} points ({before:.2f} % -> {after:.2f} %)"
        return drop, f"{reason}, limit {gate.limit:g}"
    drop = 100.0 - values[gate.metric]
    name = gate.metric.replace("top", "top-")
    return drop, f"{name} differs from FP32 on {drop:.2f} % of samples, limit {gate.limit:g} %"


def _level(gate: Gate, values: Mapping[str, float]) -> tuple[float, str]:
    value = values[gate.metric]
    unit = {"sqnr": " dB", "equal": " %", "accuracy": " %", "accuracy_fp32": " %"}.get(gate.metric, "")
    bound = "at most" if gate.metric in CEILINGS else "at least"
    return value, f"{gate.metric} is {value:.5g}{unit}, must be {bound} {gate.limit:g}{unit}"
