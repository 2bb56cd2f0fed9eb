"""Print a report on stdout and leave with its exit code.

Touches: stdout.
"""

from __future__ import annotations

from typing import NoReturn

import typer

from trtopt.errors import EXIT_GATE_FAILED, EXIT_PASS, TrtoptError
from trtopt.types import Report


def finish(report: Report, format: str, unable: TrtoptError | None = None) -> NoReturn:
    """Print `report`; exit 1 when a gate failed, or could not be settled and the user does not allow that; else 3 when
    this machine could not build (`unable`), else 0.
    """
    from trtopt.report import show

    show(format, report)
    if report.verdict == "fail" or (report.verdict == "inconclusive" and not report.allow_inconclusive):
        raise typer.Exit(EXIT_GATE_FAILED)
    if unable is not None:
        raise unable
    raise typer.Exit(EXIT_PASS)
