"""Report formats: `--format NAME` selects the module of that name, which has `render(report) -> str`.

Touches: `show` prints on stdout; nothing else.
"""

from __future__ import annotations

import sys

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


def show(format: str, report: Report) -> None:
    """Print the report on stdout; `text` in colour where stdout is a terminal."""
    if format == "text":
        from rich.console import Console

        from trtopt.report.text import renderable

        console = Console(highlight=False)
        if console.is_terminal:
            # Progress on stderr has already shown the stages, if stderr is a terminal too.
            seen = sys.stdout.isatty() and sys.stderr.isatty()
            console.print(renderable(report, stages=not seen))
            return
    print(render(format, report), end="")
