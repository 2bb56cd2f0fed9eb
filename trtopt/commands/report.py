"""The command `trtopt report`: the report of a run, or those of several runs as candidates side by side.

Touches: reads the run directories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trtopt.candidate import fastest, timings_of
from trtopt.commands.compare import ranked
from trtopt.errors import UsageError
from trtopt.run import environment, invocation, load
from trtopt.types import CandidateReport, Report


def gathered(runs: Sequence[Path]) -> Report:
    """Return the report of the only run, or one report with the candidates of all runs. Nothing is written.

    Raises:
        UsageError: a run has no report that can be read, or no comparison; a run is named twice; or the runs were not
            compared with the same baseline on the same samples.
    """
    if len(runs) == 1:
        return load(runs[0])
    from trtopt.compare.gate import verdict

    reports: dict[Path, Report] = {}
    for run in runs:
        if run.resolve() in {other.resolve() for other in reports}:
            raise UsageError(f"{run} is named twice", fix="Name each run once")
        reports[run] = load(run)
    built = all(report.engine is not None for report in reports.values())
    rows = [row for run, report in reports.items() for row in _rows(run, report, built)]
    _check_same(rows)
    first = next(iter(reports.values()))
    return Report(
        command="report",
        verdict=verdict(row.comparison for row in rows),
        model=first.model,
        run_dir=runs[0],
        warnings=tuple(dict.fromkeys(line for report in reports.values() for line in report.warnings)),
        notes=tuple(dict.fromkeys(line for report in reports.values() for line in report.notes)),
        environment=environment(),
        candidates=ranked(rows),
        allow_inconclusive=all(report.allow_inconclusive for report in reports.values()),
        written=False,
        invocation=invocation(),
    )


def _rows(run: Path, report: Report, built: bool) -> list[CandidateReport]:
    """Return the candidates of a run; `built` is true if all runs have an engine, whose sizes can be compared."""
    if report.candidates:
        return list(report.candidates)
    if report.comparison is None:
        raise UsageError(f"{run} does not contain a comparison", why=f"its report is one of trtopt {report.command}")
    timing = fastest(timings_of(run))
    return [
        CandidateReport(
            name=str(run),
            precision=report.precision,
            size_bytes=report.engine.size_bytes if built and report.engine else _graph_size(run, report),
            comparison=report.comparison,
            latency=timing.p50 if timing else math.nan,
            latency_batch=timing.batch if timing else 0,
            pareto=False,
        )
    ]


def _graph_size(run: Path, report: Report) -> int:
    """Return the size of the typed graph in bytes; 0 if it is unknown, as where only the report was kept."""
    path = run / report.typed.onnx.path.name if report.typed else None
    return path.stat().st_size if path is not None and path.is_file() else 0


def _check_same(rows: Sequence[CandidateReport]) -> None:
    """Refuse candidates that were not compared with the same baseline on the same samples."""
    first = rows[0]
    for row in rows[1:]:
        for what in ("baseline", "data", "samples"):
            one, other = (getattr(each.comparison, what) for each in (first, row))
            if one != other:
                raise UsageError(
                    f"{first.name} and {row.name} cannot be shown side by side",
                    why=f"their {what} differ: {one} and {other}",
                    fix="Compare them in one run: trtopt compare MODEL RUN RUN --data DATA",
                )
