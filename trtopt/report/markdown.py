"""Report as GitHub-flavoured Markdown, for a step summary (at most 1 MiB) or a merge request.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtopt.report.page import benchmark, headline, tuned, words
from trtopt.report.page.steps import steps
from trtopt.types import Comparison, Layers, Report
from trtopt.wording import counted

_ICONS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "unchecked": "⚠️"}
_MARKS = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "unchecked": "?"}
_MAX_LAYERS = 10

# A cell has at most 5 bytes per character (`&amp;`), and a row about a dozen cells of free text and short numbers.
# So the page always stays below GitHub's limit of 1 MiB.
_MAX_ROWS = 60
_MAX_CELL = 200
_MAX_VERDICT = 1000
_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;"} | {ord(mark): f"\\{mark}" for mark in "\\|`*_["}


def render(report: Report) -> str:
    """Return a heading with the verdict, then gates, layers, drift, stages and the nodes kept in higher precision."""
    icon = _ICONS["fail" if report.error else report.verdict]
    lines = [f"## {icon} trtopt {_cell(report.command)}: {_cell(headline.verdict(report), _MAX_VERDICT)}", ""]
    precision = f" → **{_cell(report.precision)}**" if report.precision else ""
    lines += [_code(report.model) + precision, ""] if report.model else []
    lines += _gates(words.judged(report))
    if report.layers is not None:
        lines += _layers(report.layers)
    if report.fault is not None:
        lines += [*(_cell(line) for line in words.fault(report)), ""]
    for step in steps(report):
        lines += [f"{_cell(step.why)}:", "", _code(step.command, _MAX_VERDICT), ""]
    if report.comparison is not None:
        lines += _comparison(report.comparison)
    if report.candidates:
        lines += [*_table(*words.candidates(report)), *_samples(report.candidates[0].comparison)]
    if report.tuning is not None:
        lines += ["### Search", "", *(f"- {_cell(line)}" for line in tuned.said(report.tuning, report.precision)), ""]
    if report.sensitivity is not None:
        rows = tuned.sensitivity_rows(report.sensitivity)
        lines += ["### Sensitivity", "", *_table(tuned.SENSITIVITY_HEAD, rows)]
    if report.benchmark is not None:
        for table in benchmark.tables(report.benchmark):
            lines += [f"### {_cell(table.title)}", "", *_table(table.head, table.rows)]
        lines += [*(f"- {_cell(name)}: {_cell(fact)}" for name, fact in benchmark.facts(report.benchmark)), ""]
    lines += _table(("output", "worst samples", "SQNR", ""), words.worst_samples(report))
    if report.target is not None:
        lines += [f"{_cell(words.targeted(report))}: {_code(str(report.target.script))}", ""]
    if report.engine is not None:
        engine = report.engine
        size = words.size(engine.size_bytes)
        made = f"{_cell(engine.builder)}, for {_cell(engine.device)}; {_cell(words.audit(engine))}."
        lines += [f"Engine {_code(str(engine.path))} ({size}), {made}", ""]
    stages = [(stage.name, _time(stage.status, stage.seconds), stage.summary) for stage in report.stages]
    lines += _table(("stage", "time", "result"), stages)
    groups = words.grouped(words.unquantized(report))
    if groups:
        kept = [(str(len(group.nodes)), group.precision, group.reason, ", ".join(group.nodes[:4])) for group in groups]
        lines += ["### Kept in higher precision", "", *_table(("nodes", "precision", "reason", "first nodes"), kept)]
    lines += [f"- warning: {_cell(line)}" for line in report.warnings[:_MAX_ROWS]]
    if len(report.warnings) > _MAX_ROWS:
        lines.append(f"- … and {len(report.warnings) - _MAX_ROWS} more warnings")
    lines += [f"- note: {_cell(line)}" for line in report.notes[:_MAX_ROWS]]
    return "\n".join(lines).rstrip() + "\n"


def _gates(judged: Sequence[words.Judged]) -> list[str]:
    """Return the table of gates, those that did not pass first, so that no limit on rows hides them."""
    order = ("fail", "inconclusive", "unchecked", "pass")
    rows = [
        (_MARKS[each.gate.verdict], each.title, each.gate.reason + (" (default)" if each.gate.default else ""))
        for each in sorted(judged, key=lambda each: order.index(each.gate.verdict))
    ]
    return _table(("", "gate", "measured"), rows)


def _layers(found: Layers) -> list[str]:
    jump = f"**First divergent layer: {_code(found.jump)}.** " if found.jump else ""
    return [f"{jump}{_cell(found.reason)}", "", *_table(words.LAYER_HEAD, words.layers(found, _MAX_LAYERS))]


def _comparison(comparison: Comparison) -> list[str]:
    """Return the drift with one row per output, and where both models ran."""
    metrics = [dict(words.metrics(output)) for output in comparison.outputs]
    labels = words.names(comparison.outputs)
    drift = [
        (output.output, output.kind, *(found.get(label, "") for label in labels))
        for output, found in zip(comparison.outputs, metrics, strict=True)
    ]
    return [*_table(("output", "read as", *labels), drift), *_samples(comparison)]


def _samples(comparison: Comparison) -> list[str]:
    where = f"FP32 ran in {_cell(comparison.baseline_ran)}; the candidate in {_cell(comparison.candidate_ran)}."
    lines = [f"{counted(comparison.samples, 'sample')} of {_code(comparison.data)}. {where}", ""]
    if comparison.engine:
        lines += [f"The engine's graph ran in {_cell(comparison.graph_ran)}.", ""]
        lines += [*(f"- {_cell(line)}" for line in words.engine(comparison)), ""]
    if comparison.loaded_ran:
        first, *rest = words.loaded(comparison)
        lines += [f"The typed graph as loaded ran in {_cell(first)}.", "", *(f"- {_cell(line)}" for line in rest), ""]
    return lines


def _time(status: str, seconds: float) -> str:
    return f"{seconds:.2f} s" if status == "ran" else status


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = ["| " + " | ".join(_cell(cell) for cell in head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows[:_MAX_ROWS]]
    if len(rows) > _MAX_ROWS:
        lines.append(f"| … and {len(rows) - _MAX_ROWS} more |" + " |" * (len(head) - 1))
    return [*lines, ""]


def _short(text: str, most: int = _MAX_CELL) -> str:
    text = " ".join(words.plain(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _cell(text: str, most: int = _MAX_CELL) -> str:
    """Escape text so that it is neither markup nor HTML and fits into its cell."""
    return _short(text, most).translate(_ESCAPES)


def _code(text: str, most: int = _MAX_CELL) -> str:
    return f"`{_short(text, most).replace('`', chr(39))}`"
