"""A report in the form asked for: `--format NAME` is the module of that name, with `render(report) -> str`.

Touches: `show` prints on stdout; nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

from trtopt.errors import UsageError
from trtopt.types import Report

_SHARED = {"benchmark", "charts", "graph_charts", "headline", "inspection", "picked", "svg", "words"}


def formats() -> tuple[str, ...]:
    """Names that `--format` takes: the modules of this folder that are no shared helpers."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


def render(format: str, report: Report) -> str:
    """Return the report in that format, without colours, ending in a newline.

    Raises:
        UsageError: there is no such format.
    """
    if format not in formats():
        raise UsageError(f"unknown format {format!r}", fix=f"Choose one of {', '.join(formats())}")
    text: str = importlib.import_module(f"{__name__}.{format}").render(report)
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
