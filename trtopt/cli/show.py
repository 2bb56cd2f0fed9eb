"""Print a report on stdout and leave with its exit code.

Touches: stdout.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from trtopt.errors import TrtoptError
from trtopt.types import Report
from trtopt.verdict import exit_code


def finish(report: Report, format: str, ended_by: TrtoptError | None = None) -> NoReturn:
    """Print `report`, and leave with the exit code that `trtopt.verdict.exit_code` gives it.

    A reader of stdout that went away changes nothing.

    Raises:
        TrtoptError: `ended_by`, where the exit code is its own.
    """
    from trtopt.report import show

    try:
        show(format, report)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # SystemExit is what rich makes of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = exit_code(report, ended_by)
    if ended_by is not None and code == ended_by.exit_code:
        raise ended_by
    raise typer.Exit(code)
