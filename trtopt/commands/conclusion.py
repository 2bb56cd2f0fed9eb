"""The end of a conversion, after the build: comparison, explanation of a failure, report.

Touches: the run directory, through the store; runs models.
"""

from __future__ import annotations

from dataclasses import replace

from trtopt import stages
from trtopt.commands import suggest
from trtopt.data.dataset import Dataset
from trtopt.plan import ConvertPlan
from trtopt.precision import precision
from trtopt.run import Run
from trtopt.stages import layers as layering
from trtopt.stages.made import Made
from trtopt.types import Benchmark, Comparison, EngineFault, Layers, Report
from trtopt.verdict import drifted, wrong


def compared(run: Run, plan: ConvertPlan, made: Made, dataset: Dataset | None) -> Comparison | None:
    """Return the judged comparison with the baseline; None if it is not wanted, or without samples."""
    if not plan.compare or dataset is None:
        run.skip("compare", "--no-compare")
        return None
    evaluation = stages.Evaluation(
        dataset=dataset,
        measure=plan.measure,
        engine=made.engine,
        calibrated_on=made.table.fingerprints if made.table else (),
    )
    measured = stages.compare(run, made.baseline, made.typed.onnx, evaluation)
    if plan.data is None:  # also without fingerprints, as with a TensorRT cache or no table
        measured = replace(measured, calibrated_on=measured.samples)
    return stages.gate(run, measured, plan.gates, plan.precision)


def judged(
    run: Run, plan: ConvertPlan, made: Made, dataset: Dataset | None
) -> tuple[Made, Comparison | None, EngineFault | None]:
    """Return the comparison of what was made, and the fault of an engine that does not compute its graph.

    Before a fault is searched for, the graph is built again: an engine that is right replaces the wrong one.
    """
    first = made.engine
    comparison = compared(run, plan, made, dataset)
    for _ in range(stages.REBUILDS):
        again = stages.rebuilt(run, made) if comparison and wrong(comparison) else None
        if again is None:
            break
        made, comparison = again, compared(run, plan, again, dataset)
    if dataset is None or comparison is None:
        return made, comparison, None
    if wrong(comparison):
        return made, comparison, stages.fault(run, made, dataset)
    if first and made.engine and (what := stages.replaced(run, first, made)):
        run.warn(f"the first engine did not compute its graph, and is replaced: {what}")
    return made, comparison, None


def explained(run: Run, made: Made, comparison: Comparison | None, dataset: Dataset | None) -> Layers | None:
    """Return where a comparison that failed drifts."""
    if dataset is None or comparison is None or not drifted([comparison]):
        return None
    return layering.explained(run, made.baseline, made.typed.onnx, made.typed, dataset)


def reported(run: Run, plan: ConvertPlan, made: Made, comparison: Comparison | None) -> Report:
    """Return the report of a conversion, without timings."""
    from trtopt.calibrate import noisiest

    scaled = precision(plan.precision).FORMAT.scaled and not plan.table
    return Report(
        command="tune" if plan.tuning else "convert",
        verdict=comparison.verdict if comparison else "unchecked",
        model=str(plan.source),
        precision=plan.precision,
        typed=made.typed,
        engine=made.engine,
        comparison=comparison,
        calibration=noisiest.read(run.store.root) if scaled else (),
        allow_inconclusive=plan.allow_inconclusive,
        tuning=made.tuning,
        tune_with=suggest.after_convert(plan, made.typed, comparison),
    )


def timed(report: Report, benchmark: Benchmark | None) -> Report:
    """Return the report with the timings, and the worse of both verdicts."""
    if benchmark is None:
        return report
    verdicts = {report.verdict, benchmark.verdict}
    worst = next(each for each in ("fail", "inconclusive", "pass", "unchecked") if each in verdicts)
    return replace(report, benchmark=benchmark, verdict=worst)
