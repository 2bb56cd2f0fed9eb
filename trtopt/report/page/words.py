"""Numbers and lists as text, the same in every format.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trtopt.compare.catalog import METRICS
from trtopt.precision import formats
from trtopt.types import NOT_WEIGHTED, Comparison, Decision, Engine, GateResult, Layers, OutputDrift, Report, Table
from trtopt.verdict import blocks, comparisons

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_BESIDE = frozenset({"Add", "AveragePool", "GlobalAveragePool", "ReduceMean"})
"""Operators that are quantized beside weighted ones."""


def number(metric: str, value: float) -> str:
    """Format a metric's value with its unit."""
    if math.isinf(value) and metric.startswith("sqnr"):
        return "identical" if value > 0 else "no signal"
    known = METRICS.get(metric)
    return f"{value:{known.format}}{known.unit and ' '}{known.unit}" if known else f"{value:.5g}"


def metrics(output: OutputDrift) -> list[tuple[str, str]]:
    """Return (name, value) of each metric of an output in reading order, with the names that `--gate` takes.

    A count of 0 non-finite is left out. `top1` is a drop of accuracy where there are labels, and agreement elsewhere.
    """
    hidden = set() if output.values.get("nonfinite") else {"nonfinite"}
    if "top1_agreement" in output.values:
        hidden.add("top1" if "accuracy" in output.values else "top1_agreement")
    shown = {name: value for name, value in output.values.items() if name not in hidden}
    return [(name, number(name, shown[name])) for name in dict.fromkeys((*METRICS, *shown)) if name in shown]


def names(outputs: Sequence[OutputDrift]) -> list[str]:
    """Return the names of all metrics that any of the outputs shows, in reading order."""
    shown = {name for output in outputs for name, _ in metrics(output)}
    return [name for name in METRICS if name in shown] + sorted(shown - METRICS.keys())


def size(count: int) -> str:
    """Format bytes in the largest unit that gives at least 1: `940 B`, `78.5 kB`, `1.20 MB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def targeted(report: Report) -> str:
    """Return the remark on a conversion for another platform, on which the engine is built; empty for any other."""
    if report.target is None:
        return ""
    return f"typed graph for {report.target.tensorrt} ({report.target.target}); build.sh builds it on the device"


def unconverted(report: Report) -> str:
    """Return the remark on a conversion that left no node in the requested precision; empty if there is one."""
    typed = report.typed
    if typed is None or typed.precision == "fp32" or typed.precision in typed.counts():
        return ""
    if report.tuning is not None and report.tuning.failed is not None:
        gate = gate_title(report.tuning.failed)
        return f"no choice can pass: {gate} fails even with nothing in {typed.precision}"
    return f"nothing was converted to {typed.precision}: all nodes are in {' and '.join(typed.counts()) or 'no type'}"


def gate_title(gate: GateResult) -> str:
    """Return `logits: top1`, or just the metric if the gate has no output."""
    return f"{gate.output}: {gate.metric}" if gate.output else gate.metric


@dataclass(frozen=True, slots=True)
class Reason:
    """Nodes, as `name (Operator)`, that share a precision and the reason for it."""

    precision: str
    reason: str
    nodes: tuple[str, ...]


def grouped(decisions: tuple[Decision, ...]) -> list[Reason]:
    """Group decisions by precision and reason; the precision with the most nodes, and its most common reason, first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for decision in decisions:
        groups.setdefault((decision.precision, decision.reason), []).append(f"{decision.node} ({decision.op})")
    found = [Reason(precision, reason, tuple(nodes)) for (precision, reason), nodes in groups.items()]
    totals = Counter(decision.precision for decision in decisions)
    return sorted(found, key=lambda group: (-totals[group.precision], group.precision, -len(group.nodes)))


def engine(comparison: Comparison) -> list[str]:
    """Return one line per output of an engine: its metric, that of its graph, and that between the two."""
    lines = []
    for drift in comparison.engine:
        known = METRICS[drift.metric]
        values = (drift.engine, drift.graph, drift.between)
        own, graph, between = (f"{value:{known.format}} {known.unit}" for value in values)
        lines.append(f"{drift.output}: {known.label} {own}, of its graph {graph}, between the two {between}")
    return lines


def loaded(comparison: Comparison) -> list[str]:
    """Return where the typed graph ran as users load it, and a line per output; nothing if it was not run so."""
    if not comparison.loaded_ran:
        return []
    lines = [comparison.loaded_ran]
    for drift in comparison.loaded:
        known = METRICS[drift.metric]
        own, other = (f"{value:{known.format}} {known.unit}" for value in (drift.loaded, drift.simulated))
        lines.append(f"{drift.output}: {known.label} {own}, simulated {other}, on a few samples")
    return lines


def fault(report: Report) -> list[str]:
    """Return what is known about a wrong engine: a sentence, and its nodes; or nothing."""
    if report.fault is None:
        return []
    return [": ".join(part for part in (report.fault.reason, ", ".join(report.fault.nodes)) if part)]


def unquantized(report: Report) -> tuple[Decision, ...]:
    """Return the nodes kept in higher precision.

    For INT8 and FP8 these are the nodes that were not quantized although their operator can be, and FP32 nodes if the
    fallback precision is lower. Otherwise they are the nodes that stay in FP32.
    """
    if report.typed is None:
        return ()
    if report.precision not in formats(8):
        return report.typed.kept()
    fallback_is_lower = report.typed.rest != "fp32"
    return tuple(
        decision
        for decision in report.typed.decisions
        if (_quantizable(decision) and decision.precision != report.precision)
        or (decision.precision == "fp32" and fallback_is_lower)
    )


def _quantizable(decision: Decision) -> bool:
    return decision.op in _WEIGHTED or (decision.op in _BESIDE and decision.reason != NOT_WEIGHTED)


@dataclass(frozen=True, slots=True)
class Judged:
    """Result of a gate, its candidate if there are several, and the number of samples (0 for a benchmark).

    `labelled` says that the samples have labels for the output.
    """

    candidate: str
    gate: GateResult
    samples: int = 0
    labelled: bool = False

    @property
    def title(self) -> str:
        """`int8: logits: top1`, `logits: top1`, or just the metric."""
        return f"{self.candidate}: {gate_title(self.gate)}" if self.candidate else gate_title(self.gate)


def _is_labelled(comparison: Comparison, gate: GateResult) -> bool:
    return any("accuracy" in each.values for each in comparison.outputs if each.output == gate.output)


def judged(report: Report) -> list[Judged]:
    """Return every gate of the report: of its comparisons, then of its benchmark."""
    found = [
        Judged(name, gate, comparison.samples, _is_labelled(comparison, gate))
        for name, comparison in comparisons(report)
        for gate in comparison.gates
    ]
    return found + [Judged("", gate) for gate in (report.benchmark.gates if report.benchmark else ())]


def blocking(report: Report) -> list[Judged]:
    """Return the gates that keep the engine from being deployed, failed ones first."""
    found = [each for each in judged(report) if blocks(report, each.gate)]
    return sorted(found, key=lambda each: each.gate.verdict != "fail")


def decibels(value: float) -> str:
    """Format an SQNR as `35.5 dB`; empty for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.1f} dB" if math.isfinite(value) else number("sqnr", value)


def candidates(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of a table of candidates, without columns that would be empty in every row."""
    rows = [
        {
            "candidate": each.name,
            "precision": each.precision,
            "size": size(each.size_bytes),
            "accuracy": _first(each.comparison, "accuracy"),
            "agreement": _first(each.comparison, "top1"),
            "SQNR": decibels(_worst_sqnr(each.comparison)),
            "latency": f"{each.latency:.3g} ms (batch {each.latency_batch})" if each.latency_batch else "",
            "verdict": each.comparison.verdict.upper() + (", best" if each.pareto else ""),
        }
        for each in report.candidates
    ]
    head = tuple(name for name in rows[0] if any(row[name] for row in rows)) if rows else ()
    return head, [tuple(row[name] for name in head) for row in rows]


def _first(comparison: Comparison, metric: str) -> str:
    return next((number(metric, out.values[metric]) for out in comparison.outputs if metric in out.values), "")


def _worst_sqnr(comparison: Comparison) -> float:
    return min((out.values["sqnr"] for out in comparison.outputs if "sqnr" in out.values), default=math.nan)


LAYER_HEAD = ("layer", "operator", "precision", "SQNR", "input SQNR", "error added")


def layers(found: Layers, count: int) -> list[tuple[str, ...]]:
    """Return the `count` layers with the lowest SQNR, as rows under `LAYER_HEAD`."""
    worst = sorted(found.layers, key=lambda layer: -math.inf if math.isnan(layer.sqnr) else layer.sqnr)[:count]
    return [
        (each.node, each.op, each.precision, decibels(each.sqnr), decibels(each.sqnr_in), f"{100 * each.added:.2g} %")
        for each in worst
    ]


def worst_samples(report: Report) -> list[tuple[str, ...]]:
    """Return rows (output, sample, SQNR, remark) of the worst samples that the user asked to list."""
    return [
        (f"{name}: {output.output}" if name else output.output, each.sample, decibels(each.sqnr), each.note)
        for name, comparison in comparisons(report)
        for output in comparison.outputs
        for each in output.worst[: report.list_worst]
    ]


def audit(engine: Engine) -> str:
    """Return the layer precisions read back from the engine, or that it was not audited."""
    if not engine.audit:
        return "not audited"
    layers = ", ".join(f"{count} {precision}" for precision, count in sorted(engine.audit.items()))
    return f"{layers} layers, read back from the {engine.audited}"


def aligned(table: Table, left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table, without its title; the columns `left` are aligned to the left, others to the right.

    Lines end without spaces.
    """
    rows = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def plain(text: str) -> str:
    """Return the text without characters that move a terminal's cursor or break a line: names are untrusted."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
