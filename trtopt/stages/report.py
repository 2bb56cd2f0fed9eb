"""The last stage: what a run leaves behind for people and for other programs.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from collections.abc import Iterable

from trtopt.events import Emit, Event, Warned
from trtopt.store import RunStore
from trtopt.types import Comparison, Report

REPORT_SCHEMA = 2


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


def write(store: RunStore, report: Report) -> None:
    """Write `report.json` and `report.html`, and the environment into the manifest."""
    from trtopt.report import render

    store.describe(report.environment)
    for format in ("json", "html"):
        store.write(f"report.{format}", render(format, report))
