"""Numbers and lists in words, the same in every format.

Touches: nothing.
"""

from __future__ import annotations

import math

from trtopt.types import Decision, Engine, GateResult, OutputDrift, Report

_DIGITS = {"top1": ".2f", "top5": ".2f", "accuracy_fp32": ".2f", "accuracy": ".2f", "equal": ".3f", "sqnr": ".2f"}
_UNITS = {"top1": " %", "top5": " %", "accuracy_fp32": " %", "accuracy": " %", "equal": " %", "sqnr": " dB"}
LABELS = {
    "accuracy_fp32": "accuracy, FP32",
    "accuracy": "accuracy, candidate",
    "top1": "top-1 agreement",
    "top5": "top-5 agreement",
    "cosine": "cosine",
    "sqnr": "SQNR",
    "rmse": "RMSE",
    "max_abs": "max |error|",
    "mean_abs": "mean |error|",
    "equal": "equal elements",
    "nonfinite": "samples with NaN or Inf",
}


def number(metric: str, value: float) -> str:
    """A metric's value with its unit."""
    if math.isinf(value) and metric == "sqnr":
        return "identical" if value > 0 else "no signal"
    return format(value, _DIGITS.get(metric, ".5g")) + _UNITS.get(metric, "")


def metrics(output: OutputDrift) -> list[tuple[str, str]]:
    """(label, value) of each metric of an output, in reading order, uneventful ones left out."""
    shown = {name: value for name, value in output.values.items() if name != "nonfinite" or value}
    return [(label, number(name, shown[name])) for name, label in LABELS.items() if name in shown]


def gate_title(gate: GateResult) -> str:
    """`logits: top1`, or just the metric when the gate is of no output."""
    return f"{gate.output}: {gate.metric}" if gate.output else gate.metric


def grouped(decisions: tuple[Decision, ...]) -> list[tuple[str, list[str]]]:
    """Decisions by reason, the most frequent first, each with its nodes as `name (Operator)`."""
    groups: dict[str, list[str]] = {}
    for decision in decisions:
        groups.setdefault(decision.reason, []).append(f"{decision.node} ({decision.op})")
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def unquantized(report: Report) -> tuple[Decision, ...]:
    """For an INT8 or FP8 run, the weighted nodes that stay in a higher precision; else those that stay in FP32."""
    if report.typed is None:
        return ()
    if report.precision in ("int8", "fp8"):
        weighted = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
        kept = report.typed.kept()
        return tuple(
            d
            for d in report.typed.decisions
            if (d.op in weighted and d.precision != report.precision) or (d in kept and report.typed.rest != "fp32")
        )
    return report.typed.kept()


def verdict(report: Report) -> str:
    """The verdict as a sentence."""
    if report.verdict == "unchecked":
        return "UNCHECKED: no comparison was asked for"
    gates = report.comparison.gates if report.comparison is not None else ()
    if report.verdict == "fail":
        failed = [gate_title(gate) for gate in gates if not gate.passed]
        return f"FAIL: {'; '.join(failed) or 'nothing was judged'}"
    return f"PASS: {len(gates)} of {len(gates)} gates hold"


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
