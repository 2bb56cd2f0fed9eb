"""A report in the form asked for: `--format NAME` is the module of that name, with `render(report) -> str`.

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
        UsageError: there is no such format.
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
            # On a terminal the stages have been seen as they came, unless stderr went elsewhere.
            seen = sys.stdout.isatty() and sys.stderr.isatty()
            console.print(renderable(report, stages=not seen))
            return
    print(render(format, report), end="")
