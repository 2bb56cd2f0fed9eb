"""Tables and facts of a benchmark, the same in every format.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trtopt.bench import READINGS
from trtopt.report.page import words
from trtopt.types import BatchLimit, Benchmark, BenchTarget, Table, Timing


def tables(benchmark: Benchmark) -> list[Table]:
    """Return the tables of latencies, of their parts, of the machine's readings, and of the batch sizes tried.

    Those of a command that measures something else follow. Columns that would be empty in every row are left out, such
    as those of the GPU on a machine without one.
    """
    found: list[Table] = []
    if benchmark.timings:
        found.append(_filled("latency in ms", [_timing(timing) for timing in benchmark.timings]))
        if split := [timing for timing in benchmark.timings if timing.parts]:
            found.append(_filled("parts of a run with copies, in ms", [_split(timing) for timing in split]))
        found.append(_filled("machine readings", [_readings(timing) for timing in benchmark.timings]))
    if benchmark.limit is not None:
        found.append(_filled("batch sizes tried", _probes(benchmark.limit)))
    return [*found, *benchmark.tables]


def facts(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Return where each target ran, how to read the numbers, and the memory that the largest batch needs."""
    rows = [(target.name, _ran(target)) for target in benchmark.targets]
    if benchmark.timings:
        rows.append(("±", "half the 95 % confidence interval of the mean, computed from the means of blocks of runs"))
    return rows + (_limit(benchmark.limit) if benchmark.limit is not None else [])


def _ran(target: BenchTarget) -> str:
    """Return what a target ran in, and how long it took to load."""
    return f"{target.ran}, loaded in {number(target.load)} s" if math.isfinite(target.load) else target.ran


def number(value: float) -> str:
    """Format with three significant digits, or all digits before the point: `0.123`, `4.57`, `1,234`."""
    if not math.isfinite(value):
        return ""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.3f}" if value < 1 else f"{value:,.{digits}f}"


def _timing(timing: Timing) -> dict[str, str]:
    return {
        "target": timing.target,
        "batch": str(timing.batch),
        "copies": "with" if timing.copies else "",
        "mean": number(timing.mean),
        "±": f"{100 * timing.noise:.0f} %" if timing.noise >= 0.1 else f"{100 * timing.noise:.2g} %",
        "p50": number(timing.p50),
        "p90": number(timing.p90),
        "p95": number(timing.p95),
        "p99": number(timing.p99),
        "samples/s": number(timing.throughput),
        "speedup": f"{timing.speedup:.2f}x" if math.isfinite(timing.speedup) else "",
        "runs": str(timing.iterations),
    }


def _split(timing: Timing) -> dict[str, str]:
    parts = {name.replace("_", " "): number(ms) for name, ms in timing.parts.items()}
    return {"target": timing.target, "batch": str(timing.batch), **parts}


def _readings(timing: Timing) -> dict[str, str]:
    cells = {"target": timing.target, "batch": str(timing.batch), "copies": "with" if timing.copies else ""}
    for name, reading in READINGS.items():
        value = timing.readings.get(name)
        if value is None:
            cells[reading.label] = ""
        elif reading.unit == "bytes":
            cells[reading.label] = words.size(round(value))
        else:
            cells[reading.label] = f"{value:.{0 if value >= 10 else 1}f} {reading.unit}"
    return cells


def _probes(limit: BatchLimit) -> list[dict[str, str]]:
    return [
        {
            "batch": str(probe.batch),
            "memory": words.size(probe.memory) if probe.memory else "",
            "median, ms": number(probe.latency),
            "": "does not fit: " + probe.failed if probe.failed else "fits",
        }
        for probe in limit.probes
    ]


def _limit(limit: BatchLimit) -> list[tuple[str, str]]:
    found = [("largest batch", f"{limit.batch or 'none'}; {limit.why}")]
    limits = [f"{words.size(limit.memory_limit)} of memory"] if limit.memory_limit else []
    limits += [f"{limit.latency_limit:g} ms"] if math.isfinite(limit.latency_limit) else []
    if limits:
        found.append(("limits", " and ".join(limits)))
    if limit.total:
        rest = max(limit.total - limit.base - limit.weights - limit.inputs_outputs, 0)
        parts = [
            f"{words.size(limit.weights)} weights",
            f"{words.size(limit.inputs_outputs)} inputs and outputs",
            f"{words.size(rest)} activations and workspace",
        ]
        base = [f"{words.size(limit.base)} used by the process before the model"] if limit.base else []
        found.append(("memory needed", f"{words.size(limit.total)}: {', '.join([*parts, *base])}"))
    if limit.bytes_per_sample:
        line = f"{words.size(limit.bytes_fixed)} plus {words.size(round(limit.bytes_per_sample))} per sample"
        found.append(("other batches", f"about {line}"))
    return found


def _filled(title: str, rows: Sequence[dict[str, str]]) -> Table:
    head = tuple(name for name in rows[0] if any(row[name] for row in rows))
    return Table(title=title, head=head, rows=tuple(tuple(row[name] for name in head) for row in rows))
