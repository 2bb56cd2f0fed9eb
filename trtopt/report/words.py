"""Numbers and lists in words, the same in every format.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from trtopt.compare.catalog import METRICS
from trtopt.types import Decision, Engine, GateResult, OutputDrift, Report

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_MAX_NAMED = 5


def number(metric: str, value: float) -> str:
    """A metric's value with its unit."""
    if math.isinf(value) and metric == "sqnr":
        return "identical" if value > 0 else "no signal"
    known = METRICS.get(metric)
    return f"{value:{known.format}}{known.unit and ' '}{known.unit}" if known else f"{value:.5g}"


def label(metric: str) -> str:
    """What a metric is called in a table; a user's own has the name that he gave it."""
    return METRICS[metric].label if metric in METRICS else metric


def metrics(output: OutputDrift) -> list[tuple[str, str]]:
    """(label, value) of each metric of an output, in reading order, uneventful ones left out."""
    shown = {name: value for name, value in output.values.items() if name != "nonfinite" or value}
    return [(label(name), number(name, shown[name])) for name in dict.fromkeys((*METRICS, *shown)) if name in shown]


def size(count: int) -> str:
    """Bytes, in the unit that gives a number above 1: `940 B`, `78.5 kB`, `1.20 MB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def gate_title(gate: GateResult) -> str:
    """`logits: top1`, or just the metric when the gate is of no output."""
    return f"{gate.output}: {gate.metric}" if gate.output else gate.metric


@dataclass(frozen=True, slots=True)
class Reason:
    """Nodes, as `name (Operator)`, that are in one precision for one reason."""

    precision: str
    reason: str
    nodes: tuple[str, ...]


def grouped(decisions: tuple[Decision, ...]) -> list[Reason]:
    """Decisions by precision and reason: the precision of most nodes first, and in it the reason of most."""
    groups: dict[tuple[str, str], list[str]] = {}
    for decision in decisions:
        groups.setdefault((decision.precision, decision.reason), []).append(f"{decision.node} ({decision.op})")
    found = [Reason(precision, reason, tuple(nodes)) for (precision, reason), nodes in groups.items()]
    totals = Counter(decision.precision for decision in decisions)
    return sorted(found, key=lambda group: (-totals[group.precision], group.precision, -len(group.nodes)))


def unquantized(report: Report) -> tuple[Decision, ...]:
    """For an INT8 or FP8 run, the weighted nodes that stay in a higher precision; else those that stay in FP32."""
    if report.typed is None:
        return ()
    if report.precision not in ("int8", "fp8"):
        return report.typed.kept()
    rest_is_low = report.typed.rest != "fp32"
    return tuple(
        decision
        for decision in report.typed.decisions
        if (decision.op in _WEIGHTED and decision.precision != report.precision)
        or (decision.precision == "fp32" and rest_is_low)
    )


def verdict(report: Report) -> str:
    """The verdict as a sentence."""
    if report.verdict == "unchecked":
        drifted = report.parity is not None and report.parity.verdict == "fail" and report.command == "export"
        return f"UNCHECKED: {'the export drifted, and was let pass' if drifted else 'no comparison was asked for'}"
    judged = report.comparison or report.parity
    gates = judged.gates if judged is not None else ()
    if report.verdict == "fail":
        failed = [gate_title(gate) for gate in gates if not gate.passed]
        more = f"; and {len(failed) - _MAX_NAMED} more" if len(failed) > _MAX_NAMED else ""
        return f"FAIL: {'; '.join(failed[:_MAX_NAMED]) or 'nothing was judged'}{more}"
    # The typed graph is judged even where this machine cannot build: that must not read as an engine that passed.
    unbuilt = "; no engine was built" if report.command == "convert" and report.engine is None else ""
    return f"PASS: {len(gates)} of {len(gates)} gates hold{unbuilt}"


def audit(engine: Engine) -> str:
    """What was read back from the engine, or that nothing was."""
    if not engine.audit:
        return "not audited"
    layers = ", ".join(f"{count} {precision}" for precision, count in sorted(engine.audit.items()))
    return f"{layers} layers, read back from the {engine.audited}"


def plain(text: str) -> str:
    """The text without what would move a terminal's cursor or break a line: names come from untrusted files."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
