"""The report for a terminal: what was done, what came out of it, and the verdict as the last line.

Everything from outside is put into `rich.text.Text`, never into markup: a name may hold brackets, emoji codes and
terminal escapes.

Touches: nothing; `renderable` is printed by whoever has a console.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trtopt.report import words
from trtopt.types import Comparison, Report

WIDTH = 100
"""Columns where there is no terminal to ask."""

_INDENT = 2
_MAX_NODES = 4
_MAX_REASONS = 8
_STYLES = {"pass": "bold green", "fail": "bold red", "unchecked": "bold yellow"}


def render(report: Report) -> str:
    """The report as plain text, `WIDTH` columns wide."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, highlight=False).print(renderable(report))
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def renderable(report: Report) -> RenderableType:
    """The report as something that rich prints."""
    title = f"{report.command} {report.model}" + (f" to {report.precision}" if report.precision else "")
    parts: list[RenderableType] = ["", text(title, "bold"), *block(_stages(report))]
    if report.engine is not None:
        parts += _engine(report)
    if report.parity is not None:
        parts += _drift(report.parity, "export against the framework")
    parts += _kept(report)
    if report.comparison is not None:
        parts += [*_drift(report.comparison, "drift against FP32"), *_gates(report.comparison)]
    parts += [text("warning: ", "yellow").append_text(text(line)) for line in report.warnings]
    parts += [""] if report.warnings else []
    parts += [text(f"report: {report.run_dir / 'report.json'}", "dim")]
    return Group(*parts, text(words.verdict(report), _STYLES[report.verdict]))


def text(content: str, style: str = "") -> Text:
    """Text from outside, shown as it is: no markup, and nothing that moves the cursor."""
    return Text(words.plain(content), style=style, overflow="fold")


def block(content: RenderableType) -> tuple[RenderableType, ...]:
    """What stands below a heading: indented, between blank lines."""
    return "", Padding(content, (0, 0, 0, _INDENT)), ""


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """A fact a row, its name in bold."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, text(value))
    return grid


def reasons(groups: Sequence[words.Reason]) -> Table:
    """A row for each reason: how many nodes, their precision, the reason, and below it the first of their names."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for group in groups:
        count = len(group.nodes)
        more = f", and {count - _MAX_NODES} more" if count > _MAX_NODES else ""
        names = text(", ".join(group.nodes[:_MAX_NODES]) + more, "dim")
        grid.add_row(str(count), text(group.precision), Group(text(group.reason), names))
    return grid


def _stages(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for stage in report.stages:
        time = f"{stage.seconds:.2f} s" if stage.status == "ran" else stage.status
        grid.add_row(text(stage.name), time, text(stage.summary))
    return grid


def _engine(report: Report) -> list[RenderableType]:
    engine = report.engine
    assert engine is not None
    rows = [
        ("file", f"{engine.path}  ({words.size(engine.size_bytes)})"),
        ("built by", engine.builder),
        ("for", engine.device),
        ("audit", words.audit(engine)),
    ]
    return [text("engine", "bold"), *block(facts(rows))]


def _kept(report: Report) -> list[RenderableType]:
    groups = words.grouped(words.unquantized(report))
    if not groups:
        return []
    title: RenderableType = text("kept in higher precision", "bold")
    rest = groups[_MAX_REASONS:]
    if not rest:
        return [title, *block(reasons(groups))]
    nodes = sum(len(group.nodes) for group in rest)
    more = text(f"{nodes} more nodes for {len(rest)} other reasons: trtopt inspect {report.run_dir} --nodes", "dim")
    return [title, *block(Group(reasons(groups[:_MAX_REASONS]), more))]


def _drift(comparison: Comparison, what: str) -> list[RenderableType]:
    """Each output's name, and below it its metrics, as many in a line as fit."""
    parts: list[RenderableType] = []
    for output in comparison.outputs:
        found = [text(f"{label} ", "dim").append(value, style="default") for label, value in words.metrics(output)]
        parts += [text(output.output).append_text(text(f" ({output.kind})", "dim"))]
        parts += [Padding(Columns(found, padding=(0, 3)), (0, 0, 1, _INDENT))]
    on = comparison.data if what.startswith("export") else f"{comparison.samples} samples of {comparison.data}"
    title = f"{what} on {on}"
    first = "source ran in" if what.startswith("export") else "FP32 ran in"
    parts += [facts([(first, comparison.baseline_ran), ("candidate in", comparison.candidate_ran)])]
    return [text(title, "bold"), *block(Group(*parts))]


def _gates(comparison: Comparison) -> list[RenderableType]:
    """Failed gates last, near the verdict."""
    if not comparison.gates:
        return []
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(style="bold", overflow="fold")
    grid.add_column(overflow="fold")
    for gate in sorted(comparison.gates, key=lambda gate: not gate.passed):
        mark = text("pass", "green") if gate.passed else text("FAIL", "bold red")
        reason = text(gate.reason).append(" (default gate)" if gate.default else "", style="dim")
        grid.add_row(mark, text(words.gate_title(gate)), reason)
    return [text("gates", "bold"), *block(grid)]
