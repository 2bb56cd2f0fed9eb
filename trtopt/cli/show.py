"""Output of a result on stdout, and exit with the code of a report.

Touches: stdout.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from trtopt.errors import TrtoptError
from trtopt.types import CalibrationTable, Failure, Predictions, Report
from trtopt.verdict import exit_code
from trtopt.wording import counted

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


def calibrated(table: CalibrationTable, run_dir: Path) -> None:
    """Print the summary of a calibration table, and the files that it was written to."""
    from trtopt.stages.tables import of_equalized

    print(f"{counted(len(table.scales), 'scale')} by {table.method} over {counted(table.samples, 'sample')}")
    for name in ("calibration.json", "calibration.cache"):
        if (run_dir / name).exists():
            print(run_dir / name)
    if of_equalized(table):
        print(
            f"The scales belong to {run_dir / 'equalized.onnx'}: use the JSON with --calib-table and the same --calib."
        )


def predicted(result: Predictions, format: str) -> None:
    """Print what was written.

    Raises:
        UsageError: the format is neither text nor json.
    """
    import json

    from trtopt.codec import encode
    from trtopt.errors import UsageError
    from trtopt.report.page.words import plain

    if format == "json":
        print(json.dumps({"schema_version": 1, **encode(result)}, indent=1))
    elif format == "text":
        failed = f", {result.failed} without an answer" if result.failed else ""
        print(plain(f"{result.out}: {counted(result.rows, 'row')} of {result.answers}{failed}"))
        print(plain(f"ran in {result.ran}"))
    else:
        raise UsageError(f"--format {format} is not supported here", fix="Choose text or json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """Form of a result: its format, and what progress has already told in the same place (None: nothing)."""

    format: str
    told: frozenset[str] | None = None


def asked_format(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the `--format` of a command line, also of one that cannot be parsed; `text` if there is none."""
    from trtopt.report import formats

    command = next((word for word in arguments if not word.startswith("-")), "")
    asked = environment.get(f"TRTOPT_{command.upper()}_FORMAT", "")
    if not asked:
        with contextlib.suppress(Exception):  # an invalid file is what is reported
            import typer.main

            from trtopt.cli.commands import app
            from trtopt.cli.settings import gather

            group: Any = typer.main.get_command(app)
            setting = gather(group, environment).found.get(command, {}).get("format")
            asked = str(setting.value) if setting else ""
    for word, following in pairwise([*arguments, ""]):
        if word == "--format" or word.startswith("--format="):
            asked = following if word == "--format" else word.partition("=")[2]
    return asked if asked in formats() else "text"


def failed(message: str, exit_code: int, format: str, command: str) -> None:
    """Print an error as a report in a format for machines; people read it on stderr."""
    from trtopt.report import show
    from trtopt.types import REPORT_SCHEMA

    if format == "text":
        return
    report = Report(
        schema_version=REPORT_SCHEMA,
        command=command,
        verdict="unchecked",
        model="",
        precision="",
        run_dir=Path(),
        stages=(),
        typed=None,
        engine=None,
        comparison=None,
        warnings=(),
        environment={},
        error=Failure(message=message, exit_code=exit_code),
    )
    with contextlib.suppress(Exception, SystemExit):  # the error itself is on stderr, whatever a format does
        show(format, report)
        sys.stdout.flush()


def finish(report: Report, printed: Printed, ended_by: TrtoptError | None = None) -> NoReturn:
    """Print `report`, and exit with its code from `trtopt.verdict.exit_code`.

    The code is the same if the reader of stdout went away.

    Raises:
        TrtoptError: `ended_by`, if it decides the exit code.
    """
    from trtopt.report import show

    code = exit_code(report, ended_by)
    decides = ended_by is not None and code == ended_by.exit_code
    if ended_by is not None and decides:
        report = replace(report, error=Failure(message=str(ended_by), exit_code=code))
    try:
        show(printed.format, report, printed.told)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich turns it into SystemExit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if ended_by is not None and decides:
        ended_by.shown = True
        raise ended_by
    raise typer.Exit(code)
