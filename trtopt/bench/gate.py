"""Thresholds on speed: `latency_p99=5ms,throughput@8=1000,speedup=1.5x`, and whether the measurement settles them.

A gate holds at every batch size that was measured, or with `@8` at that one. It judges the last target (the others are
there to compare with), with the copies between host and device where there are any: that is what a caller waits for.

Touches: nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trtopt.bench.units import MILLISECONDS, quantity
from trtopt.errors import UsageError
from trtopt.types import Benchmark, GateResult, Interval, Timing, Verdict

_UNITS = {"latency": MILLISECONDS, "throughput": {"": 1.0, "/s": 1.0}, "speedup": {"": 1.0, "x": 1.0}}
_EXAMPLES = {"latency": "5ms", "throughput": "1000", "speedup": "1.5x"}
METRICS = ("latency_mean", "latency_p50", "latency_p90", "latency_p95", "latency_p99", "throughput", "speedup")
"""What a gate can be put on: latencies are at most, the others at least their limit."""

_WRITTEN = re.compile(r"(?P<metric>[^@=<>]*)(?:@(?P<batch>[^=<>]*))?(?P<sign><=|>=|=)(?P<limit>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """`limit` of `metric`, in ms, samples a second or times, at one batch size or (0) at all of them."""

    metric: str
    limit: float
    batch: int = 0

    @property
    def kind(self) -> str:
        """`latency`, `throughput` or `speedup`."""
        return self.metric.partition("_")[0]

    @property
    def is_floor(self) -> bool:
        """Whether the value must be at least the limit, and not at most."""
        return self.kind != "latency"


def parse_gates(text: str) -> tuple[Gate, ...]:
    """Parse `latency_p99=5ms,throughput@8=1000,speedup=1.5x`. A blank text gives no gates.

    A gate that is written twice is one gate.

    Raises:
        UsageError: a part does not parse, names no metric, or has a limit that cannot be meant.
    """
    return tuple(dict.fromkeys(_parse(part.strip()) for part in text.split(","))) if text.strip() else ()


def _parse(part: str) -> Gate:
    written = _WRITTEN.fullmatch(part)
    if not written or not written["metric"].strip():
        raise UsageError(
            f"--gate {part!r} does not parse", fix="Write METRIC=LIMIT, such as latency_p99=5ms or speedup=1.5x"
        )
    metric = written["metric"].strip()
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, 1)
        raise UsageError(
            f"--gate names an unknown metric {metric!r}",
            fix=f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(METRICS)}",
        )
    gate = Gate(metric=metric, limit=0.0, batch=_batch(part, written["batch"]))
    sense = ">=" if gate.is_floor else "<="
    if written["sign"] not in ("=", sense):
        why = f"{metric} must be at {'least' if gate.is_floor else 'most'} its limit"
        raise UsageError(f"--gate {part!r} cannot be meant", why=why, fix=f"Write {metric}={_EXAMPLES[gate.kind]}")
    limit = quantity(written["limit"], _UNITS[gate.kind], f"--gate {part!r}", f"{metric}={_EXAMPLES[gate.kind]}")
    return replace(gate, limit=limit)


def _batch(part: str, text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text.strip()):
        raise UsageError(f"--gate {part!r} has no batch size after the @", fix="Write latency_p99@8=5ms")
    return int(text)


def check(gates: Sequence[Gate], batches: Sequence[int], targets: int) -> None:
    """Refuse a gate that could not be judged, before anything is measured.

    Raises:
        UsageError: it is of a batch size that is not measured, or compares targets where there is one.
    """
    for gate in gates:
        if gate.batch and gate.batch not in batches:
            raise UsageError(
                f"--gate {gate.metric}@{gate.batch} is of a batch size that is not measured",
                why=f"those measured are {', '.join(map(str, batches))}",
                fix=f"Add {gate.batch} to --batch, or change the gate",
            )
        if gate.kind == "speedup" and targets < 2:
            raise UsageError(
                "--gate speedup has nothing to compare with",
                why="it holds the last target against the first, and there is one",
                fix="Name two: trtopt bench model.onnx trtopt-out/model/int8 --gate speedup=1.5x",
            )


def judged(benchmark: Benchmark, gates: Sequence[Gate]) -> Benchmark:
    """The benchmark with its gates and their verdict; `unchecked` where there are none.

    In a sweep that did not come to its end, nothing passes: a gate `complete` says so.
    """
    results = [_hold(gate, timing) for gate in gates for timing in _rows(benchmark) if gate.batch in (0, timing.batch)]
    if gates and not benchmark.complete:
        measured = ", ".join(str(timing.batch) for timing in _rows(benchmark)) or "none"
        reason = f"the sweep did not come to its end: batch sizes measured: {measured}"
        results.append(
            GateResult(output="", metric="complete", value=0.0, limit=1.0, verdict="inconclusive", reason=reason)
        )
    found = {result.verdict for result in results}
    verdict: Verdict = "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"
    return replace(benchmark, gates=tuple(results), verdict=verdict if results else "unchecked")


def _rows(benchmark: Benchmark) -> list[Timing]:
    """The timings of the last target, with copies where it has them."""
    last = [timing for timing in benchmark.timings if timing.target == benchmark.targets[-1].name]
    copies = any(timing.copies for timing in last)
    return [timing for timing in last if timing.copies == copies]


def _hold(gate: Gate, timing: Timing) -> GateResult:
    value, bounds, unit = _measured(gate, timing)
    holds, fails = bounds.high <= gate.limit, bounds.low > gate.limit
    if gate.is_floor:
        holds, fails = bounds.low >= gate.limit, bounds.high < gate.limit
    verdict: Verdict = "pass" if holds else "fail" if fails else "inconclusive"
    high = f"to {bounds.high:.4g}" if math.isfinite(bounds.high) else "and no upper one"
    side = "at least" if gate.is_floor else "at most"
    reason = f"{value:.4g}{unit}, 95 % bounds {bounds.low:.4g} {high}, must be {side} {gate.limit:g}{unit}"
    if verdict == "inconclusive":
        reason += f": {timing.iterations} runs do not settle it; --seconds makes it more"
    return GateResult(
        output=f"{timing.target}, batch {timing.batch}",
        metric=gate.metric,
        value=value,
        limit=gate.limit,
        verdict=verdict,
        reason=reason,
        low=bounds.low,
        high=bounds.high,
    )


def _measured(gate: Gate, timing: Timing) -> tuple[float, Interval, str]:
    """The value, its bounds, and its unit."""
    mean = timing.bounds["mean"]
    if gate.kind == "throughput":
        samples = timing.batch * 1000
        low = max(mean.low, 1e-9)
        return timing.throughput, Interval(low=samples / mean.high, high=samples / low), " samples/s"
    if gate.kind == "speedup":
        return timing.speedup, timing.bounds["speedup"], "x"
    name = gate.metric.removeprefix("latency_")
    return getattr(timing, name), timing.bounds[name], " ms"
