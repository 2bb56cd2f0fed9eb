"""`trtopt report`: what a run found, once more and in any format.

Touches: reads the run directory; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import Format, FormatFlag


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    format: FormatFlag = Format.text,
) -> None:
    """Print the report that a run left, in any format: one run, and an annotation, a summary and a JUnit file of it.

    Exits 0 whatever the verdict was: it was given by the exit code of the run. To hold other gates against what was
    measured, use trtopt compare --from.
    """
    import json

    from trtopt.codec import decode
    from trtopt.errors import UsageError
    from trtopt.report import show
    from trtopt.stages.report import REPORT_SCHEMA
    from trtopt.types import Report

    path = run / "report.json"
    try:
        found = decode(Report, json.loads(path.read_text(encoding="utf-8")))
        if found.schema_version != REPORT_SCHEMA:
            raise ValueError(found.schema_version)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = "there is none" if missing else "it cannot be read, or another version wrote it"
        raise UsageError(f"no report at {path}", why=why, fix="Name a run directory of this version") from error
    show(format.value, found)
