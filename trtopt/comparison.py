"""`trtopt compare` from top to bottom: candidates beside one baseline, and new thresholds for what was measured before.

Touches: the run directory, through the store; an earlier run's report.
"""

from __future__ import annotations

import math
from dataclasses import replace

from trtopt import checks, stages
from trtopt.candidate import Candidate, resolve
from trtopt.config import ComparePlan, JudgePlan
from trtopt.errors import UsageError
from trtopt.events import Emit, Warned, silent
from trtopt.shapes import fixed
from trtopt.stages import layers as layering
from trtopt.stages import report as reporting
from trtopt.store import open_store
from trtopt.types import CandidateReport, Comparison, Report


def compare(plan: ComparePlan, emit: Emit = silent) -> Report:
    """Compare candidates with the FP32 baseline, and judge them.

    Raises:
        TrtoptError: something given cannot be used.
    """
    from trtopt.compare.gate import verdict
    from trtopt.export.onnx import describe

    if not plan.candidates:
        raise UsageError("nothing to compare", fix="Name a candidate or more")
    if plan.layers and len(plan.candidates) > 1:
        raise UsageError("--layers looks at one candidate", fix="Name the one that you want to understand")
    baseline = describe(plan.baseline)
    candidates = {str(path): resolve(path) for path in plan.candidates}
    checks.measure(plan.measure)
    checks.outputs(plan.gates, plan.measure, baseline)
    for candidate in candidates.values():
        checks.pair(baseline, candidate.onnx)
    checks.exists(plan.data)
    warnings: list[str] = []
    with open_store(plan.run_dir, emit) as store:
        reporting.forget(store)
        context = stages.Context(store=store, emit=reporting.recording(emit, warnings), device=plan.device)
        taken = {spec.name: spec.shape for candidate in candidates.values() for spec in candidate.onnx.inputs}
        dataset = stages.open_data(plan.data, replace(baseline, inputs=fixed(baseline.inputs, taken)))
        for note in dataset.notes:
            context.emit(Warned(f"{plan.data.source}: {note}"))
        checks.classes(dataset, plan.measure, baseline)
        comparisons: dict[str, Comparison] = {}
        for name, candidate in candidates.items():
            suffix = f" {name}" if len(candidates) > 1 else ""
            evaluation = stages.Evaluation(
                dataset=dataset, measure=plan.measure, ran=candidate.ran, calibrated_on=candidate.calibrated_on
            )
            measured = stages.compare(context, baseline, candidate.onnx, evaluation, f"compare{suffix}")
            comparisons[name] = stages.gate(context, measured, plan.gates, f"gate{suffix}")
        only = next(iter(candidates.values())) if len(candidates) == 1 else None
        overall = verdict(comparisons.values())
        layers = None
        if only and (plan.layers or overall == "fail"):
            explain = layering.layers if plan.layers else layering.explained
            layers = explain(context, baseline, only.onnx, only.typed, dataset)
        report = Report(
            schema_version=reporting.REPORT_SCHEMA,
            command="compare",
            verdict=overall,
            model=str(plan.baseline),
            precision=only.typed.precision if only and only.typed else "",
            run_dir=store.root,
            stages=tuple(store.outcomes),
            typed=only.typed if only else None,
            engine=only.engine if only else None,
            comparison=next(iter(comparisons.values())) if only else None,
            warnings=reporting.remarks(warnings, *comparisons.values()),
            environment=stages.environment(),
            layers=layers,
            calibration=only.calibration if only else (),
            candidates=() if only else _table(candidates, comparisons),
            allow_inconclusive=plan.allow_inconclusive,
            list_worst=plan.worst,
        )
        reporting.write(store, report)
    return report


def judge_again(plan: JudgePlan) -> Report:
    """Hold new thresholds against what an earlier run measured; nothing is run, and nothing is written.

    Raises:
        UsageError: the directory holds no report of this version, or what was measured is not what is asked for.
    """
    from trtopt.compare.gate import judged, verdict

    earlier = reporting.load(plan.run)
    before = [earlier.comparison] if earlier.comparison else [each.comparison for each in earlier.candidates]
    if not before:
        why = f"it is of trtopt {earlier.command}"
        raise UsageError(f"{plan.run} holds no comparison", why=why, fix="Run trtopt compare")
    for comparison in before:
        checks.measured(plan.run, plan.measure, comparison)
    after = [judged(comparison, plan.gates) for comparison in before]
    stale = {line for comparison in before for line in comparison.remarks}
    rows = () if earlier.comparison else zip(earlier.candidates, after, strict=True)
    return replace(
        earlier,
        command="compare",
        verdict=verdict(after),
        comparison=after[0] if earlier.comparison else None,
        candidates=tuple(replace(row, comparison=new) for row, new in rows),
        stages=tuple(stage for stage in earlier.stages if stage.name.partition(" ")[0] != "gate"),
        warnings=reporting.remarks([line for line in earlier.warnings if line not in stale], *after),
        allow_inconclusive=plan.allow_inconclusive,
        list_worst=plan.worst,
    )


def _table(candidates: dict[str, Candidate], comparisons: dict[str, Comparison]) -> tuple[CandidateReport, ...]:
    """A row for each candidate, the Pareto-best marked."""
    # An engine's size and a graph's are not of one kind: engines are weighed where all candidates have one.
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
    """Whether `other` is better in size, drift or latency, and worse in none; a latency counts where both have it."""
    ours, theirs = _costs(row), _costs(other)
    both = [(mine, his) for mine, his in zip(ours, theirs, strict=True) if not math.isnan(mine + his)]
    return any(his < mine for mine, his in both) and all(his <= mine for mine, his in both)


def _costs(row: CandidateReport) -> tuple[float, float, float]:
    return float(row.size_bytes), -quality(row.comparison), row.latency


def quality(comparison: Comparison) -> float:
    """How near to FP32 a candidate is, for an order of candidates: the SQNR in dB of its worst floating-point output,
    or where there is none the share of boxes, pixels or elements that are FP32's.
    """
    for metric in ("sqnr", "matched", "pixels", "equal"):
        found = [output.values[metric] for output in comparison.outputs if metric in output.values]
        if found:
            return min(found)
    return math.nan
