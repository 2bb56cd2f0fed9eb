"""The command `trtopt compare`: candidates compared with one baseline, and new gates for an earlier measurement.

Touches: the run directory, through the store; an earlier run's report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trtopt import stages
from trtopt.candidate import Candidate, resolve
from trtopt.commands import checks, suggest
from trtopt.compare.quality import quality
from trtopt.errors import UsageError
from trtopt.events import Emit, silent
from trtopt.plan import ComparePlan
from trtopt.run import open_run
from trtopt.shapes import fixed
from trtopt.stages import layers as layering
from trtopt.types import CandidateReport, Comparison, Report


def compare(plan: ComparePlan, emit: Emit = silent) -> Report:
    """Compare candidates with the FP32 baseline, and return the report with the verdict.

    Raises:
        TrtoptError: an argument cannot be used, or a stage failed.
    """
    from trtopt.compare.gate import verdict
    from trtopt.graph.file import describe

    if not plan.candidates:
        raise UsageError("nothing to compare", fix="Name at least one candidate")
    if plan.layers and len(plan.candidates) > 1:
        raise UsageError("--layers takes a single candidate", fix="Name only the candidate to look into")
    baseline = describe(plan.baseline)
    _check_distinct(plan.candidates)
    candidates = {str(path): resolve(path) for path in plan.candidates}
    checks.measure(plan.measure)
    checks.outputs(plan.gates, plan.measure, baseline)
    for candidate in candidates.values():
        checks.pair(baseline, candidate.onnx)
    checks.exists(plan.data)
    with open_run(plan.run_dir, emit, plan.device, plan.cache) as run:
        run.forget()
        baseline = stages.widen(run, baseline)
        # A candidate may have fixed a dimension that is dynamic in the baseline: samples must fit both.
        shapes = {spec.name: spec.shape for candidate in candidates.values() for spec in candidate.onnx.inputs}
        dataset = stages.open_data(plan.data, replace(baseline, inputs=fixed(baseline.inputs, shapes)))
        for name, candidate in candidates.items():
            if candidate.made_from and baseline.digest not in candidate.made_from:
                run.warn(f"{name} was not made from {plan.baseline}, but from another model or version of it")
        stages.tell(run.emit, dataset)
        checks.classes(dataset, plan.measure, baseline)
        comparisons: dict[str, Comparison] = {}
        for name, candidate in candidates.items():
            suffix = f" {name}" if len(candidates) > 1 else ""
            evaluation = stages.Evaluation(
                dataset=dataset,
                measure=plan.measure,
                engine=candidate.engine,
                calibrated_on=candidate.calibrated_on,
            )
            measured = stages.compare(run, baseline, candidate.onnx, evaluation, f"compare{suffix}")
            precision = candidate.typed.precision if candidate.typed else ""
            comparisons[name] = stages.gate(run, measured, plan.gates, precision, f"gate{suffix}")
        only = next(iter(candidates.values())) if len(candidates) == 1 else None
        overall = verdict(comparisons.values())
        layers = None
        if only and (plan.layers or overall == "fail"):
            explain = layering.layers if plan.layers else layering.explained
            layers = explain(run, baseline, only.onnx, only.typed, dataset)
        precision = only.typed.precision if only and only.typed else ""
        return run.finish(
            Report(
                command="compare",
                verdict=overall,
                model=str(plan.baseline),
                precision=precision,
                typed=only.typed if only else None,
                engine=only.engine if only else None,
                comparison=next(iter(comparisons.values())) if only else None,
                layers=layers,
                calibration=only.calibration if only else (),
                candidates=() if only else _table(candidates, comparisons),
                allow_inconclusive=plan.allow_inconclusive,
                list_worst=plan.worst,
                tune_with=suggest.after_compare(plan, precision, overall),
            )
        )


def _check_distinct(candidates: Sequence[Path]) -> None:
    """Reject a candidate that is named twice."""
    named: dict[Path, Path] = {}
    for path in candidates:
        first = named.setdefault(path.resolve(), path)
        if first is not path:
            raise UsageError(f"{path} is the same candidate as {first}", fix="Name each candidate once")


def _table(candidates: dict[str, Candidate], comparisons: dict[str, Comparison]) -> tuple[CandidateReport, ...]:
    """Return one row per candidate, with the Pareto-optimal ones marked."""
    # The size of an engine is not comparable with that of a graph, so engines count only if all candidates have one.
    built = all(candidate.engine is not None for candidate in candidates.values())
    rows = [_row(name, candidate, comparisons[name], built) for name, candidate in candidates.items()]
    return tuple(replace(row, pareto=not any(_beats(other, row) for other in rows)) for row in rows)


def _row(name: str, candidate: Candidate, comparison: Comparison, built: bool) -> CandidateReport:
    timing = candidate.fastest()
    engine = candidate.engine if built else None
    return CandidateReport(
        name=name,
        precision=candidate.typed.precision if candidate.typed else "",
        size_bytes=engine.size_bytes if engine else candidate.onnx.path.stat().st_size,
        comparison=comparison,
        latency=timing.p50 if timing else math.nan,
        latency_batch=timing.batch if timing else 0,
        pareto=False,
    )


def _beats(other: CandidateReport, row: CandidateReport) -> bool:
    """Return whether `other` is better than `row` in size, drift or latency, and worse in none of them.

    A latency counts only if both have one.
    """
    pairs = zip(_costs(row), _costs(other), strict=True)
    known = [(row_cost, other_cost) for row_cost, other_cost in pairs if not math.isnan(row_cost + other_cost)]
    better = any(other_cost < row_cost for row_cost, other_cost in known)
    worse = any(other_cost > row_cost for row_cost, other_cost in known)
    return better and not worse


def _costs(row: CandidateReport) -> tuple[float, float, float]:
    """Return size, drift and latency; less is better, and NaN means unknown."""
    return float(row.size_bytes), -quality(row.comparison), row.latency
