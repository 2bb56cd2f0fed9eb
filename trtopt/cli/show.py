"""Output of a result on stdout, and exit with the code of a report.

Touches: stdout.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from trtopt.errors import TrtoptError
from trtopt.types import Report
from trtopt.verdict import exit_code

if TYPE_CHECKING:
    from trtopt.commands.rehearse import Rehearsed


def rehearsed(found: Rehearsed, format: str) -> NoReturn:
    """Print the stages that are cached and those that would run, and exit with 0.

    Raises:
        UsageError: the format is neither text nor json.
    """
    import json

    from trtopt.codec import encode
    from trtopt.errors import UsageError
    from trtopt.report.page.words import plain

    if format == "json":
        print(json.dumps({"schema_version": 1, **encode(found)}, indent=1))
        raise typer.Exit
    if format != "text":
        raise UsageError(f"--dry-run does not support --format {format}", fix="Choose text or json")
    for name, summary in found.cached:
        print(plain(f"  {name:<10} cached     {summary}"))
    for name in found.would_run:
        print(plain(f"  {name:<10} would run"))
    count = f"{len(found.cached)} stages are cached, {len(found.would_run)} would run"
    print(plain(f"dry run: {count}; nothing was written to {found.run_dir}"))
    raise typer.Exit


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
