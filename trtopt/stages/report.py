"""The last stage: the report that a run writes for people and for other programs.

Touches: the run directory, through the store.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from trtopt.code_digest import code_digest
from trtopt.codec import decode, encode
from trtopt.errors import UsageError
from trtopt.events import Emit, Event, Noted, Warned
from trtopt.store import RunStore
from trtopt.types import Comparison, Report

REPORT_SCHEMA = 2
FORMATS = ("json", "html")
"""Formats that are written to the run directory in any case; other formats are only printed."""


Said = list[Noted | Warned]
"""Notes and warnings that a run emitted."""


def recording(emit: Emit, said: Said) -> Emit:
    """Return an `emit` that also appends every note and warning to `said`, for the report. Each is emitted once."""

    def record(event: Event) -> None:
        if isinstance(event, Noted | Warned):
            if event in said:
                return
            said.append(event)
        emit(event)

    return record


def warnings(said: Said, *comparisons: Comparison | None) -> tuple[str, ...]:
    """Return the warnings of the run and of its comparisons, without duplicates."""
    lines = [event.message for event in said if isinstance(event, Warned)]
    lines += [line for comparison in comparisons if comparison is not None for line in comparison.warnings]
    return tuple(dict.fromkeys(lines))


def notes(said: Said, *comparisons: Comparison | None) -> tuple[str, ...]:
    """Return the notes of the run, and the notes and remarks of its comparisons, without duplicates."""
    lines = [event.message for event in said if isinstance(event, Noted)]
    lines += [
        line
        for comparison in comparisons
        if comparison is not None
        for line in (*comparison.notes, *comparison.remarks)
    ]
    return tuple(dict.fromkeys(lines))


def forget(store: RunStore) -> None:
    """Delete the reports of an earlier run, so that a run that fails does not leave an old verdict."""
    for format in FORMATS:
        store.withdraw(f"report.{format}")


def write(store: RunStore, report: Report) -> None:
    """Write `report.json` and `report.html`, and the environment into the manifest.

    An equal report, as after a run whose stages were all cached, is not rendered again.
    """
    from trtopt.report import render

    data = json.dumps(encode(report))  # without indentation, which takes ten times as long
    key = hashlib.sha256((code_digest(rendering=True) + data).encode()).hexdigest()
    for format in FORMATS:
        store.render(f"report.{format}", key, partial(render, format, report))
    store.describe(report.environment)


def load(run: Path) -> Report:
    """Return the report in a run directory.

    Raises:
        UsageError: the report does not exist, cannot be read, or was written by another version.
    """
    path = run / "report.json"
    try:
        report = decode(Report, json.loads(path.read_text(encoding="utf-8")))
        if report.schema_version != REPORT_SCHEMA:
            raise ValueError(report.schema_version)
    except (OSError, ValueError, RecursionError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = "it does not exist" if missing else "it cannot be read, or another version wrote it"
        raise UsageError(
            f"no report at {path}", why=why, fix="Give a run directory that this version of trtopt wrote"
        ) from error
    return report
