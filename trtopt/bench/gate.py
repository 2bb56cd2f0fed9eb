"""Gates on speed, such as `latency_p99=5ms,throughput@8=1000,speedup=1.5x`, and their verdicts.

A gate applies at every measured batch size, or with `@8` at batch size 8 only. Gates judge the last target; the others
are there for comparison. Where inputs and outputs are copied between host and device, the time includes the copies,
because callers wait for them.

A time on the CPU is no evidence about a GPU: unless the user asked for the CPU, a gate that was measured there is
inconclusive.

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
"""Metrics that a gate can limit: latencies from above, the others from below."""

NO_EVIDENCE = "no evidence about a GPU: judge the CPU with --device cpu, or run this on the GPU"
"""The remark on a measurement on a CPU that the user did not ask for."""

_GATE = re.compile(r"(?P<metric>[^@=<>]*)(?:@(?P<batch>[^=<>]*))?(?P<sign><=|>=|=)(?P<limit>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Limit of a metric at one batch size, or at all measured ones (`batch` 0).

    The unit of `limit` is ms for latencies, samples per second for the throughput, and a factor for the speedup.
    """

    metric: str
    limit: float
    batch: int = 0

    @property
    def kind(self) -> str:
        """Family of the metric: `latency`, `throughput` or `speedup`."""
        return self.metric.partition("_")[0]

    @property
    def is_floor(self) -> bool:
        """True if the value must be at least the limit, False if it must be at most the limit."""
        return self.kind != "latency"


def written(gates: Sequence[Gate]) -> str:
    """Return gates as `parse_gates` reads them."""
    units = {"latency": "ms", "throughput": "", "speedup": "x"}
    return ",".join(
        f"{gate.metric}{f'@{gate.batch}' if gate.batch else ''}={gate.limit!r}{units[gate.kind]}" for gate in gates
    )


def parse_gates(text: str) -> tuple[Gate, ...]:
    """Parse gates such as `latency_p99=5ms,throughput@8=1000,speedup=1.5x`; return () for a blank text.

    A gate that is written twice counts once.

    Raises:
        UsageError: a part does not parse, its metric is unknown, or its limit is invalid.
    """
    return tuple(dict.fromkeys(_parse(part.strip()) for part in text.split(","))) if text.strip() else ()


def _parse(part: str) -> Gate:
    match = _GATE.fullmatch(part)
    if not match or not match["metric"].strip():
        raise UsageError(
            f"--gate {part!r} does not parse", fix="Write METRIC=LIMIT, such as latency_p99=5ms or speedup=1.5x"
        )
    metric = match["metric"].strip()
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, 1)
        raise UsageError(
            f"--gate names an unknown metric {metric!r}",
            fix=f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(METRICS)}",
        )
    gate = Gate(metric=metric, limit=0.0, batch=_batch(part, match["batch"]))
    example = f"{metric}={_EXAMPLES[gate.kind]}"
    # "=" takes the direction of the metric. An explicit "<=" or ">=" must agree with it.
    direction = ">=" if gate.is_floor else "<="
    if match["sign"] not in ("=", direction):
        why = f"{metric} must be at {'least' if gate.is_floor else 'most'} its limit"
        raise UsageError(f"wrong comparison in --gate {part!r}", why=why, fix=f"Write {example}")
    limit = quantity(match["limit"], _UNITS[gate.kind], f"--gate {part!r}", example)
    return replace(gate, limit=limit)


def _batch(part: str, text: str | None) -> int:
    """Return the batch size after the `@` of a gate, or 0 for a gate without one."""
    if text is None:
        return 0
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text.strip()):
        raise UsageError(
            f"--gate {part!r} has the batch size {text.strip()!r} after the @",
            why="it must be a positive integer",
            fix="Write latency_p99@8=5ms",
        )
    return int(text)


def check(gates: Sequence[Gate], batches: Sequence[int], targets: int) -> None:
    """Reject gates that could not be judged, before anything is measured.

    Args:
        gates: the gates.
        batches: the batch sizes that will be measured.
        targets: the number of targets.

    Raises:
        UsageError: a gate names a batch size that is not measured, or a speedup gate has only one target.
    """
    for gate in gates:
        if gate.batch and gate.batch not in batches:
            raise UsageError(
                f"--gate {gate.metric}@{gate.batch}: batch size {gate.batch} is not measured",
                why=f"the measured batch sizes are {', '.join(map(str, batches))}",
                fix=f"Add {gate.batch} to --batch, or change the gate",
            )
        if gate.kind == "speedup" and targets < 2:
            raise UsageError(
                "--gate speedup needs two targets",
                why="it compares the last target with the first, and there is only one",
                fix="Name two: trtopt bench model.onnx trtopt-out/model/int8 --gate speedup=1.5x",
            )


def judged(benchmark: Benchmark, gates: Sequence[Gate], *, cpu_counts: bool) -> Benchmark:
    """Return the benchmark with the results of its gates and their verdict, which is `unchecked` without gates.

    `cpu_counts` says that the user asked for the CPU. A sweep that ended early cannot pass: it gets an additional,
    inconclusive gate named `complete`.
    """
    results = [
        _judge(gate, timing, _on_cpu(gate, benchmark), cpu_counts=cpu_counts)
        for gate in gates
        for timing in _rows(benchmark)
        if gate.batch in (0, timing.batch)
    ]
    if gates and not benchmark.complete:
        measured = ", ".join(str(timing.batch) for timing in _rows(benchmark)) or "none"
        reason = f"the sweep ended early; batch sizes measured: {measured}"
        results.append(
            GateResult(output="", metric="complete", value=0.0, limit=1.0, verdict="inconclusive", reason=reason)
        )
    verdicts = {result.verdict for result in results}
    verdict: Verdict = "unchecked"
    if "fail" in verdicts:
        verdict = "fail"
    elif "inconclusive" in verdicts:
        verdict = "inconclusive"
    elif results:
        verdict = "pass"
    return replace(benchmark, gates=tuple(results), verdict=verdict)


def _rows(benchmark: Benchmark) -> list[Timing]:
    """Return the timings of the last target: those with copies if it has any."""
    last = [timing for timing in benchmark.timings if timing.target == benchmark.targets[-1].name]
    copies = any(timing.copies for timing in last)
    return [timing for timing in last if timing.copies == copies]


def _on_cpu(gate: Gate, benchmark: Benchmark) -> str:
    """Return ` on the CPU` if the targets that a gate rests on ran there (a speedup rests on the first, too)."""
    targets = (benchmark.targets[0], benchmark.targets[-1]) if gate.kind == "speedup" else benchmark.targets[-1:]
    devices = {target.device for target in targets}
    if "cpu" not in devices:
        return ""
    return " on the CPU" if len(devices) == 1 else " partly on the CPU"


def _judge(gate: Gate, timing: Timing, on_cpu: str, *, cpu_counts: bool) -> GateResult:
    value, bounds, unit = _measured(gate, timing)
    # A gate passes or fails only if the whole confidence interval lies on one side of the limit.
    if gate.is_floor:
        passes, fails = bounds.low >= gate.limit, bounds.high < gate.limit
    else:
        passes, fails = bounds.high <= gate.limit, bounds.low > gate.limit
    verdict: Verdict = "pass" if passes else "fail" if fails else "inconclusive"
    if math.isfinite(bounds.high):
        interval = f"95 % bounds {bounds.low:.4g} to {bounds.high:.4g}"
    else:
        interval = f"95 % lower bound {bounds.low:.4g} and no upper bound"
    side = "at least" if gate.is_floor else "at most"
    measured, wanted = f"{value:.4g}{unit}{on_cpu}", f"must be {side} {gate.limit:g}{unit}"
    reason = f"{measured}, {interval}, {wanted}"
    if on_cpu and not cpu_counts:
        verdict, reason = "inconclusive", f"{measured}, {wanted}, {NO_EVIDENCE}"
    elif verdict == "inconclusive":
        reason += f": {timing.iterations} runs are too few to decide; raise --seconds"
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
    """Return the value of the gate's metric, its bounds, and its unit."""
    mean = timing.bounds["mean"]
    if gate.kind == "throughput":
        samples = timing.batch * 1000  # per second at a latency of 1 ms
        # The throughput falls as the latency rises, so the bounds trade places. The lower bound of the mean is an
        # estimate and may be zero or negative.
        low = max(mean.low, 1e-9)
        return timing.throughput, Interval(low=samples / mean.high, high=samples / low), " samples/s"
    if gate.kind == "speedup":
        return timing.speedup, timing.bounds["speedup"], "x"
    name = gate.metric.removeprefix("latency_")
    return getattr(timing, name), timing.bounds[name], " ms"
