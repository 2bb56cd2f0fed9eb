"""Print a report on stdout and leave with its exit code.

Touches: stdout.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from trtopt.errors import EXIT_GATE_FAILED, EXIT_PASS, TrtoptError
from trtopt.types import Report


def finish(report: Report, format: str, unable: TrtoptError | None = None) -> NoReturn:
    """Print `report`; exit 1 when a gate failed, or could not be settled and the user does not allow that; else 3 when
    this machine could not build (`unable`), else 0. It is the same when the reader of stdout went away.
    """
    from trtopt.report import show

    try:
        show(format, report)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # SystemExit is what rich makes of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if report.verdict == "fail" or (report.verdict == "inconclusive" and not report.allow_inconclusive):
        raise typer.Exit(EXIT_GATE_FAILED)
    if unable is not None:
        raise unable
    raise typer.Exit(EXIT_PASS)
