"""Output of a report on stdout, and exit with its code.

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
    """Print `report`, and exit with its code from `trtopt.verdict.exit_code`.

    The code is the same if the reader of stdout went away.

    Raises:
        TrtoptError: `ended_by`, if it decides the exit code.
    """
    from trtopt.report import show

    try:
        show(format, report)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich turns it into SystemExit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = exit_code(report, ended_by)
    if ended_by is not None and code == ended_by.exit_code:
        raise ended_by
    raise typer.Exit(code)
