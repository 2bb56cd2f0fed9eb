"""Report for a terminal: stages, results, and the verdict as the last line.

Untrusted text goes into `rich.text.Text`, never into markup: names may contain brackets, emoji codes and terminal
escapes.

Touches: nothing; the caller prints the result of `renderable`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trtopt.report.page import benchmark, headline, tuned, words
from trtopt.report.page.steps import steps
from trtopt.types import Benchmark, Comparison, Layers, Report
from trtopt.wording import counted

WIDTH = 100
"""Width in columns without a terminal."""

_INDENT = 2
_MAX_NODES = 4
_MAX_REASONS = 8
_MAX_LAYERS = 10
_MAX_CELL = 28
_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow", "unchecked": "bold yellow"}
_MARKS = {
    "pass": ("pass", "green"),
    "unchecked": ("?", "bold yellow"),
    "inconclusive": ("inconclusive", "bold yellow"),
    "fail": ("FAIL", "bold red"),
}


def render(report: Report) -> str:
    """Return the report as plain text, `WIDTH` columns wide; the verdict, the last line, is not wrapped."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, highlight=False).print(Group(*_body(report)), crop=False)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "".join(f"{line}\n" for line in (*lines, words.plain(headline.verdict(report))))


def renderable(report: Report) -> RenderableType:
    """Return the report as a rich renderable, to print with `crop=False`: its commands are not wrapped."""
    return Group(*_body(report), text(headline.verdict(report), _STYLES[report.verdict]))


def _body(report: Report) -> list[RenderableType]:
    """Return all of the report but the verdict."""
    title = f"{report.command} {report.model}" + (f" to {report.precision}" if report.precision else "")
    nothing = words.unconverted(report)
    first = [text(words.targeted(report), "bold")] if report.target else []
    first += [text(nothing, "bold yellow")] if nothing else []
    parts: list[RenderableType] = [
        "",
        *first,
        text(title, "bold"),
        *(block(_stages(report)) if report.stages else [""]),
    ]
    if report.engine is not None:
        parts += _engine(report)
    if report.target is not None:
        rows = [("graph", str(report.target.graph)), ("build with", str(report.target.script))]
        rows += [("cache", str(report.target.cache))] if report.target.cache else []
        parts += [text(f"for {report.target.target}", "bold"), *block(facts(rows))]
    if report.parity is not None:
        parts += _drift(report.parity, "export against the framework")
    parts += _kept(report)
    if report.comparison is not None:
        parts += _drift(report.comparison, "drift against FP32")
    if report.tuning is not None:
        lines = tuned.said(report.tuning, report.precision)
        parts += [text("search", "bold"), *block(Group(*map(text, lines)))]
    if report.sensitivity is not None:
        lines = tuned.sensitivity_said(report.sensitivity)
        table = _grid(tuned.SENSITIVITY_HEAD, tuned.sensitivity_rows(report.sensitivity))
        parts += [text("sensitivity", "bold"), *block(table), *map(text, lines), ""]
    if report.candidates:
        parts += _candidates(report)
    if report.layers is not None:
        parts += _layers(report.layers)
    if report.fault is not None:
        parts += [text("what makes the engine wrong", "bold"), *block(Group(*map(text, words.fault(report))))]
    if report.benchmark is not None:
        parts += _benchmark(report.benchmark)
    worst = words.worst_samples(report)
    if worst:
        parts += [text("worst samples", "bold"), *block(_grid(("output", "sample", "SQNR", ""), worst))]
    parts += _gates(words.judged(report))
    parts += [text("note: ", "dim").append_text(text(line)) for line in report.notes]
    parts += [text("warning: ", "yellow").append_text(text(line)) for line in report.warnings]
    parts += [""] if report.warnings or report.notes else []
    for step in steps(report):
        parts += [text(f"{step.why}:", "dim"), _command(step.command)]
    file = report.run_dir / "report.json"
    where = f"report: {file}" if report.written else f"report: not written: {file} keeps its own gates"
    return parts if report.command == "report" else [*parts, text(where, "dim")]


def text(content: str, style: str = "") -> Text:
    """Return untrusted text to be shown literally: without markup, and without characters that move the cursor."""
    return Text(words.plain(content), style=style, overflow="fold")


def _command(line: str) -> Text:
    """Return a command on a line of its own, which is not wrapped: a line break would be pasted with it."""
    return Text(f"{' ' * _INDENT}{words.plain(line)}", no_wrap=True, overflow="ignore")


def block(content: RenderableType) -> tuple[RenderableType, ...]:
    """Return content below a heading: indented, between blank lines."""
    return "", Padding(content, (0, 0, 0, _INDENT)), ""


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Return a table with one fact per row, its name in bold."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(text(name), text(value))
    return grid


def reasons(groups: Sequence[words.Reason]) -> Table:
    """Return a table with one row per reason: number of nodes, precision, reason, and below it the first names."""
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
        ("target", engine.device),
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
    more = text(f"{nodes} more nodes with {len(rest)} other reasons: trtopt inspect {report.run_dir} --nodes", "dim")
    return [title, *block(Group(reasons(groups[:_MAX_REASONS]), more))]


def _drift(comparison: Comparison, what: str) -> list[RenderableType]:
    """Return each output's name, and below it its metrics, as many per line as fit."""
    parts: list[RenderableType] = []
    for output in comparison.outputs:
        found = [text(f"{label} ", "dim").append(value, style="default") for label, value in words.metrics(output)]
        parts += [text(output.output).append_text(text(f" ({output.kind})", "dim"))]
        parts += [Padding(Columns(found, padding=(0, 3)), (0, 0, 1, _INDENT))]
    samples = f"{counted(comparison.samples, 'sample')} of {comparison.data}"
    on = comparison.data if what.startswith("export") else samples
    title = f"{what} on {on}"
    first = "source ran in" if what.startswith("export") else "FP32 ran in"
    ran = [(first, comparison.baseline_ran), ("candidate in", comparison.candidate_ran)]
    if comparison.engine:
        ran += [("its graph in", comparison.graph_ran), *(("engine", line) for line in words.engine(comparison))]
    ran += [("as loaded", line) for line in words.loaded(comparison)]
    parts += [facts(ran)]
    return [text(title, "bold"), *block(Group(*parts))]


def _candidates(report: Report) -> list[RenderableType]:
    head, rows = words.candidates(report)
    first = report.candidates[0].comparison
    title = f"candidates against FP32 on {counted(first.samples, 'sample')} of {first.data}"
    where = [("FP32 ran in", first.baseline_ran)]
    where += [(each.name, each.comparison.candidate_ran) for each in report.candidates]
    note = text(
        "best (Pareto): every other candidate that is better in size, drift or latency is worse in another of them",
        "dim",
    )
    return [text(title, "bold"), *block(Group(_grid(head, rows), "", note, "", facts(where)))]


def _benchmark(found: Benchmark) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for table in benchmark.tables(found):
        parts += [text(table.title, "bold"), *block(_grid(table.head, table.rows))]
    return [*parts, *block(facts(benchmark.facts(found)))[1:]]


def _layers(found: Layers) -> list[RenderableType]:
    """Return the layers with the lowest SQNR, and the first divergent layer."""
    jump = f"first divergent layer: {found.reason}" if found.jump else found.reason
    on = f"{counted(found.samples, 'sample')} of {found.data}"
    title = f"drift by layer, the worst of {len(found.layers)} layers, on {on}"
    table = _grid(words.LAYER_HEAD, words.layers(found, _MAX_LAYERS))
    return [text(title, "bold"), *block(Group(table, "", text(jump, "bold" if found.jump else "dim")))]


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for i, name in enumerate(head):
        # Numbers are not wrapped; names and reasons share the remaining width.
        is_long = i == 0 or any(len(row[i]) > _MAX_CELL for row in rows)
        grid.add_column(text(name), overflow="fold", no_wrap=not is_long, ratio=1 if is_long else None)
    for row in rows:
        grid.add_row(*(text(cell) for cell in row))
    return grid


def _gates(judged: Sequence[words.Judged]) -> list[RenderableType]:
    """Return the gates, failed ones last, next to the verdict."""
    if not judged:
        return []
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(style="bold", overflow="fold")
    grid.add_column(overflow="fold")
    for each in sorted(judged, key=lambda each: list(_MARKS).index(each.gate.verdict)):
        reason = text(each.gate.reason).append(" (default gate)" if each.gate.default else "", style="dim")
        grid.add_row(text(*_MARKS[each.gate.verdict]), text(each.title), reason)
    return [text("gates", "bold"), *block(grid)]
