"""The command `trtopt compare`: candidates compared with one baseline, and new gates for an earlier measurement.

Touches: the run directory, through the store; an earlier run's report.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trtopt import stages
from trtopt.candidate import Candidate, fastest, resolve
from trtopt.commands import checks, suggest
from trtopt.compare.quality import quality
from trtopt.data.dataset import Dataset
from trtopt.errors import UsageError
from trtopt.events import Emit, StageCached, StageFinished, StageStarted, silent
from trtopt.plan import ComparePlan, MeasurePlan
from trtopt.run import Run, open_run
from trtopt.rundir import claimed
from trtopt.shapes import fixed
from trtopt.shards.partial import Partial, partial_name
from trtopt.shards.shard import Shard
from trtopt.stages import layers as layering
from trtopt.types import CandidateReport, Comparison, OnnxModel, Report
from trtopt.verdict import drifted

KIND = "compare"

_MOST_IMAGES = 32
"""Largest number of images of samples in a report, each at most 20 kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A comparison that is about to begin: the run, the baseline, the candidates by name, and the samples."""

    run: Run
    baseline: OnnxModel
    candidates: Mapping[str, Candidate]
    dataset: Dataset

    def evaluation(self, candidate: Candidate, measure: MeasurePlan) -> stages.Evaluation:
        """Return the samples and options for one candidate."""
        return stages.Evaluation(
            dataset=self.dataset,
            measure=measure,
            engine=candidate.engine,
            calibrated_on=candidate.calibrated_on,
        )


@contextmanager
def _begun(plan: ComparePlan, emit: Emit) -> Iterator[_Begun]:
    """Check the plan, open the run directory, and open the models and the samples."""
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
            if candidate.unrecorded:
                run.warn(candidate.unrecorded)
            if candidate.made_from and baseline.digest not in candidate.made_from:
                run.warn(f"{name} was not made from {plan.baseline}, but from another model or version of it")
        stages.tell(run.emit, dataset)
        checks.classes(dataset, plan.measure, baseline)
        yield _Begun(run=run, baseline=baseline, candidates=candidates, dataset=dataset)


def compare_shard(plan: ComparePlan, shard: Shard, emit: Emit = silent) -> Path:
    """Run both models on one shard of the samples, and return the file of the partial result.

    It is in the run directory of the whole. One that is there already, of the same shard, is not made again.

    Raises:
        TrtoptError: as `compare`.
    """
    from trtopt.stages.recorded import record

    if len(plan.candidates) > 1:
        raise UsageError("--shard takes a single candidate", fix="Name one candidate for each comparison")
    folder = claimed(plan.run_dir)
    path = folder / f"{KIND}.{partial_name(shard)}"
    own = replace(plan, run_dir=folder / f"shard-{shard.number}-of-{shard.count}")
    with _begun(own, emit) as begun:
        start = time.perf_counter()
        emit(StageStarted(KIND))
        (candidate,) = begun.candidates.values()
        evaluation = begun.evaluation(candidate, plan.measure)
        new = record(begun.run, (begun.baseline, candidate.onnx), evaluation, plan, (path, shard))
        line = f"shard {shard}, {path}"
        emit(StageFinished(KIND, time.perf_counter() - start, line) if new else StageCached(KIND, line))
    return path


def compare(plan: ComparePlan, emit: Emit = silent, partials: Sequence[Partial] = ()) -> Report:
    """Compare candidates with the FP32 baseline, and return the report with the verdict.

    With the partial results of all shards, no sample is run again.

    Raises:
        TrtoptError: an argument cannot be used, or a stage failed.
    """
    from trtopt.compare.gate import verdict

    with _begun(plan, emit) as begun:
        run, baseline, candidates, dataset = begun.run, begun.baseline, begun.candidates, begun.dataset
        comparisons: dict[str, Comparison] = {}
        for name, candidate in candidates.items():
            suffix = f" {name}" if len(candidates) > 1 else ""
            evaluation = begun.evaluation(candidate, plan.measure)
            measured = stages.compare(run, baseline, candidate.onnx, evaluation, f"compare{suffix}", partials)
            precision = candidate.typed.precision if candidate.typed else ""
            comparisons[name] = stages.gate(run, measured, plan.gates, precision, f"gate{suffix}")
        only = next(iter(candidates.values())) if len(candidates) == 1 else None
        overall = verdict(comparisons.values())
        layers = None
        if only and (plan.layers or drifted(comparisons.values())):
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
                tune_with=suggest.after_compare(plan, precision, comparisons.values()),
            )
        )


def _check_distinct(candidates: Sequence[Path]) -> None:
    """Reject a candidate that is named twice."""
    named: dict[Path, Path] = {}
    for path in candidates:
        first = named.setdefault(path.resolve(), path)
        if first is not path:
            raise UsageError(f"{path} is the same candidate as {first}", fix="Name each candidate once")


def _table(candidates: Mapping[str, Candidate], comparisons: dict[str, Comparison]) -> tuple[CandidateReport, ...]:
    """Return one row per candidate, with the Pareto-optimal ones marked."""
    # The size of an engine is not comparable with that of a graph, so engines count only if all candidates have one.
    built = all(candidate.engine is not None for candidate in candidates.values())
    return ranked([_row(name, candidate, comparisons[name], built) for name, candidate in candidates.items()])


def ranked(rows: Sequence[CandidateReport]) -> tuple[CandidateReport, ...]:
    """Return the rows with the Pareto-optimal ones marked, and with as many images in all as a report has space for."""
    most = max(_MOST_IMAGES // len(rows), 1)
    return tuple(
        replace(
            row,
            comparison=replace(row.comparison, exhibits=row.comparison.exhibits[:most]),
            pareto=not any(_beats(other, row) for other in rows),
        )
        for row in rows
    )


def _row(name: str, candidate: Candidate, comparison: Comparison, built: bool) -> CandidateReport:
    timing = fastest(candidate.timings)
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
