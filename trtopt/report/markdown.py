"""The report as GitHub-flavoured Markdown, for a step summary (1 MiB at most) or a merge request.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtopt.report import words
from trtopt.types import Report

_ICONS = {"pass": "✅", "fail": "❌", "unchecked": "⚠️"}
_MAX_ROWS = 200


def render(report: Report) -> str:
    """A heading with the verdict, then gates, drift, stages and what was kept in higher precision, as tables."""
    title = f"## {_ICONS[report.verdict]} trtopt {report.command}: {_cell(words.verdict(report))}"
    lines = [title, "", f"`{report.model}`" + (f" → **{report.precision}**" if report.precision else ""), ""]
    if report.comparison is not None:
        gates = [
            (("pass" if g.passed else "**FAIL**"), words.gate_title(g), g.reason + (" (default)" if g.default else ""))
            for g in report.comparison.gates
        ]
        lines += _table(("", "gate", "measured"), gates)
        drift = [(o.output, label, value) for o in report.comparison.outputs for label, value in words.metrics(o)]
        lines += _table(("output", "metric", "value"), drift)
        c = report.comparison
        lines += [
            f"{c.samples} samples of `{c.data}`. FP32 ran in {c.baseline_ran}; candidate in {c.candidate_ran}.",
            "",
        ]
    if report.engine is not None:
        engine = report.engine
        lines += [
            f"Engine `{engine.path}` ({engine.size_bytes / 1e6:.2f} MB), {engine.builder}, for {engine.device}.",
            "",
        ]
    lines += _table(
        ("stage", "time", "result"), [(s.name, _time(s.status, s.seconds), s.summary) for s in report.stages]
    )
    kept = [
        (str(len(nodes)), reason, ", ".join(nodes[:4])) for reason, nodes in words.grouped(words.unquantized(report))
    ]
    if kept:
        lines += ["### Kept in higher precision", "", *_table(("nodes", "reason", "first of them"), kept)]
    lines += [f"> {_cell(line)}" for line in report.warnings[:_MAX_ROWS]]
    return "\n".join(lines).rstrip() + "\n"


def _time(status: str, seconds: float) -> str:
    return f"{seconds:.2f} s" if status == "ran" else status


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows[:_MAX_ROWS]]
    if len(rows) > _MAX_ROWS:
        lines.append(f"| … and {len(rows) - _MAX_ROWS} more |" + " |" * (len(head) - 1))
    return [*lines, ""]


def _cell(text: str) -> str:
    text = text if len(text) <= 400 else text[:399] + "…"
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
