"""The last stage: what a run leaves behind for people and for other programs.

Touches: the run directory, through the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from trtopt.codec import decode
from trtopt.errors import UsageError
from trtopt.events import Emit, Event, Warned
from trtopt.store import RunStore, writing
from trtopt.types import Comparison, Report

REPORT_SCHEMA = 2
FORMATS = ("json", "html")
"""What is written as a file of the run directory, whatever is printed."""


def recording(emit: Emit, warnings: list[str]) -> Emit:
    """`emit` that also keeps what was warned of, for the report."""

    def record(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.message)
        emit(event)

    return record


def remarks(warnings: Iterable[str], *comparisons: Comparison | None) -> tuple[str, ...]:
    """Warnings of the run and of its comparisons, each of them once."""
    judged = [comparison for comparison in comparisons if comparison is not None]
    lines = [line for comparison in judged for line in (*comparison.warnings, *comparison.remarks)]
    return tuple(dict.fromkeys([*warnings, *lines]))


def forget(store: RunStore) -> None:
    """Delete the reports of an earlier run: one that ends early must not leave another one's verdict behind."""
    for format in FORMATS:
        with writing(store.root):
            (store.root / f"report.{format}").unlink(missing_ok=True)


def write(store: RunStore, report: Report) -> None:
    """Write `report.json` and `report.html`, and the environment into the manifest."""
    from trtopt.report import render

    store.describe(report.environment)
    for format in FORMATS:
        store.write(f"report.{format}", render(format, report))


def load(run: Path) -> Report:
    """The report that a run left in its directory.

    Raises:
        UsageError: there is none, or another version wrote it.
    """
    path = run / "report.json"
    try:
        found = decode(Report, json.loads(path.read_text(encoding="utf-8")))
        if found.schema_version != REPORT_SCHEMA:
            raise ValueError(found.schema_version)
    except (OSError, ValueError, RecursionError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = "there is none" if missing else "it cannot be read, or another version wrote it"
        raise UsageError(f"no report at {path}", why=why, fix="Name a run directory of this version") from error
    return found
