"""The report for a terminal.

Touches: nothing; `renderable` is printed by whoever has a console.
"""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trtopt.report import words
from trtopt.types import Comparison, Report

_MAX_NODES = 4
_MAX_REASONS = 8
_STYLES = {"pass": "bold green", "fail": "bold red", "unchecked": "bold yellow"}


def render(report: Report) -> str:
    """The report as plain text, 100 columns wide."""
    stream = io.StringIO()
    Console(file=stream, width=100, no_color=True, highlight=False, emoji=False).print(renderable(report))
    return stream.getvalue()


def renderable(report: Report) -> RenderableType:
    """The report as something that rich prints."""
    parts: list[RenderableType] = ["", _stages(report)]
    if report.engine is not None:
        parts += ["", _engine(report)]
    if report.comparison is not None:
        parts += ["", _drift(report.comparison), "", _gates(report.comparison)]
    parts += _kept(report)
    if report.warnings:
        parts += ["", *(f"[yellow]warning:[/] {safe(line)}" for line in report.warnings)]
    parts += ["", Text(words.plain(words.verdict(report)), style=_STYLES[report.verdict])]
    parts += [f"[dim]report: {safe(str(report.run_dir / 'report.json'))}[/]"]
    return Group(*parts)


def safe(text: str) -> str:
    """Text from outside, as markup that shows it as it is."""
    return escape(words.plain(text))


def _table(title: str) -> Table:
    return Table(title=safe(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _stages(report: Report) -> Table:
    table = _table(f"{report.command} {report.model}" + (f" to {report.precision}" if report.precision else ""))
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("result", overflow="fold")
    for stage in report.stages:
        time = f"{stage.seconds:.2f} s" if stage.status == "ran" else stage.status
        table.add_row(stage.name, time, safe(stage.summary))
    return table


def _engine(report: Report) -> Table:
    engine = report.engine
    assert engine is not None
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("engine", f"{safe(str(engine.path))}  ({engine.size_bytes / 1e6:.2f} MB)")
    grid.add_row("built by", safe(engine.builder))
    grid.add_row("for", safe(engine.device))
    grid.add_row("audit", safe(words.audit(engine)))
    return grid


def _drift(comparison: Comparison) -> RenderableType:
    table = _table(f"drift against FP32 on {comparison.samples} samples of {comparison.data}")
    table.add_column("output")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for output in comparison.outputs:
        for index, (label, value) in enumerate(words.metrics(output)):
            table.add_row("" if index else f"{safe(output.output)} [dim]({output.kind})[/]", label, value)
    ran = f"[dim]FP32 ran in {safe(comparison.baseline_ran)}; the candidate in {safe(comparison.candidate_ran)}[/]"
    return Group(table, ran)


def _gates(comparison: Comparison) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for gate in comparison.gates:
        mark = "[green]pass[/]" if gate.passed else "[red]FAIL[/]"
        reason = safe(gate.reason) + (" [dim](default gate)[/]" if gate.default else "")
        grid.add_row(mark, safe(words.gate_title(gate)), reason)
    return grid


def _kept(report: Report) -> list[RenderableType]:
    groups = words.grouped(words.unquantized(report))
    if not groups:
        return []
    table = _table("kept in higher precision")
    table.add_column("nodes", justify="right")
    table.add_column("reason", overflow="fold")
    table.add_column("which", overflow="fold")
    for reason, nodes in groups[:_MAX_REASONS]:
        more = f", and {len(nodes) - _MAX_NODES} more" if len(nodes) > _MAX_NODES else ""
        table.add_row(str(len(nodes)), safe(reason), safe(", ".join(nodes[:_MAX_NODES])) + more)
    if len(groups) > _MAX_REASONS:
        table.add_row(
            str(sum(len(nodes) for _, nodes in groups[_MAX_REASONS:])), "other reasons", "trtopt inspect --nodes"
        )
    return ["", table]
