"""Report formats: `--format NAME` selects the module of that name, which has `render(report) -> str`.

Touches: `show` prints on stdout; nothing else.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace

from trtopt import plugins
from trtopt.types import Report


def formats() -> tuple[str, ...]:
    """Return the names that `--format` accepts."""
    return plugins.names(__name__)


def render(format: str, report: Report) -> str:
    """Return the report in that format, without colours, ending in a newline.

    Raises:
        UsageError: the format is unknown.
    """
    text: str = plugins.load(__name__, format, "format").render(report)
    return text


def show(format: str, report: Report, told: Container[str] | None = None) -> None:
    """Print the report on stdout; `text` in colour where stdout is a terminal.

    `told` are the notes and warnings that progress has shown in the same place, where it has also shown the stages
    (None: it has not). They are not repeated as text, nor notes in GitHub's log, where warnings become annotations.
    """
    if told is not None and format in ("text", "github"):
        report = replace(report, notes=_untold(report.notes, told))
    if told is not None and format == "text":
        report = replace(report, stages=(), warnings=_untold(report.warnings, told))
    if format == "text":
        from rich.console import Console

        from trtopt.report.text import renderable

        console = Console(highlight=False)
        if console.is_terminal:
            console.print(renderable(report), crop=False)
            return
    print(render(format, report), end="")


def _untold(lines: Iterable[str], told: Container[str]) -> tuple[str, ...]:
    return tuple(line for line in lines if line not in told)
