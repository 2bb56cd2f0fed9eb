"""Gates on a load test, such as `latency_p99@50=20ms,throughput=45`: `@50` is a rate, and without it all rates count.

A rate at which a request failed passes no gate. One that this machine could not keep fails none.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trtopt.bench.gate import Gate
from trtopt.errors import UsageError
from trtopt.serve.load import RateResult
from trtopt.types import GateResult, Interval, Verdict


def check(gates: Sequence[Gate], rates: Sequence[float]) -> None:
    """Reject gates that could not be judged, before anything is sent.

    Raises:
        UsageError: a gate is about a rate that is not tested, or about a speedup.
    """
    for gate in gates:
        if gate.kind == "speedup":
            raise UsageError("--gate speedup is not for --server", fix="Use latency_p99=20ms or throughput=50")
        if gate.batch and gate.batch not in rates:
            raise UsageError(
                f"--gate {gate.metric}@{gate.batch}: {gate.batch} requests per second are not tested",
                fix=f"Add {gate.batch} to --rate, or change the gate",
            )


def judged(gates: Sequence[Gate], results: Sequence[RateResult], model: str) -> tuple[GateResult, ...]:
    """Return the result of each gate at each rate that it is about."""
    return tuple(_judge(gate, each, model) for gate in gates for each in results if gate.batch in (0, each.rate))


def verdict(results: Sequence[GateResult]) -> Verdict:
    """Return the verdict of all gates; `unchecked` without any."""
    found = {result.verdict for result in results}
    worst_first: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    return next((name for name in worst_first if name in found), "unchecked")


def _judge(gate: Gate, result: RateResult, model: str) -> GateResult:
    value, interval, unit = _measured(gate, result)
    side = "at least" if gate.is_floor else "at most"
    reason = f"{value:.4g}{unit}, must be {side} {gate.limit:g}{unit}"
    if gate.is_floor:
        passes, fails = interval.low >= gate.limit, interval.high < gate.limit
    else:
        passes, fails = interval.high <= gate.limit, interval.low > gate.limit
    decided: Verdict = "pass" if passes else "fail" if fails else "inconclusive"
    if decided == "inconclusive":
        reason += f"; {result.answered} answers are too few to decide: raise --seconds"
    if result.is_late and decided == "fail":  # sent late, a request only looks slower
        decided, reason = "inconclusive", f"{reason}; this machine cannot send {result.rate:g} requests per second"
    if result.errors:
        message, count = next(iter(result.errors.items()))
        decided, reason = "fail", f"{sum(result.errors.values())} of {result.sent} requests failed: {count} x {message}"
    return GateResult(
        output=f"{model}, {result.rate:g} requests/s",
        metric=gate.metric,
        value=value,
        limit=gate.limit,
        verdict=decided,
        reason=reason,
        low=interval.low,
        high=interval.high,
    )


def _measured(gate: Gate, result: RateResult) -> tuple[float, Interval, str]:
    """Return the value of the gate's metric, its bounds, and its unit."""
    if gate.kind == "throughput":
        return result.throughput, Interval(low=result.throughput, high=result.throughput), " requests/s"
    name = gate.metric.removeprefix("latency_")
    return result.latency[name], result.bounds.get(name, Interval(low=0.0, high=math.inf)), " ms"
