"""Pipeline of stages, in order: export, parity, widen, repair, prepare, calibrate, observe, precision, build, compare,
gate, layers (when the gate failed), report.

This module only orders the stages. `trtopt.stages` implements them, with the packages of the same names.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trtopt import stages
from trtopt.commands import checks
from trtopt.commands.calibrate import calibrated, prepared
from trtopt.data.dataset import Dataset
from trtopt.errors import BuildError, DataError, EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.events import Emit, Noted, StageUnavailable, Warned, silent
from trtopt.plan import ConvertPlan
from trtopt.rehearsal import open_for
from trtopt.shapes import named, profile
from trtopt.stages import export as exporting
from trtopt.stages import layers as layering
from trtopt.stages import report as reporting
from trtopt.stages.batch import fixed_batch
from trtopt.stages.made import Made
from trtopt.stages.repair import is_quantized
from trtopt.types import (
    CalibrationTable,
    Comparison,
    Engine,
    EngineFault,
    Layers,
    Observation,
    OnnxModel,
    Report,
    ShapeRange,
    StageOutcome,
    TypedModel,
)


def convert(plan: ConvertPlan, emit: Emit = silent) -> tuple[Report, TrtoptError | None]:
    """Convert a model, and compare the result with FP32.

    Returns the report, and the reason why no engine could be built on this machine (None if one was built). All steps
    that do not need TensorRT have completed in either case.

    Raises:
        TrtoptError: a stage failed; the results of earlier stages stay in the store.
    """
    from trtopt.export.source import identify
    from trtopt.graph.unread import unread
    from trtopt.precision import precision

    checks.compared(plan)
    checks.names(plan)
    checks.build_flags(plan)
    kind = precision(plan.precision)
    given = identify(str(plan.source))
    ready = exporting.ready(given, plan.export)
    quantized = ready is not None and is_quantized(ready)
    checks.data_flags(plan, needs_table=kind.NEEDS_TABLE and not quantized)
    if ready is not None:
        profile(
            ready.inputs, plan.shapes, lambda: stages.sizes((plan.data, plan.calib), ready), lambda: unread(ready.path)
        )  # fail fast on a bad --shape
    said: reporting.Said = []
    with open_for(plan.run_dir, emit, plan.cache) as store:
        reporting.forget(store)
        context = stages.Context(store=store, emit=reporting.recording(emit, said), device=plan.device)
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data or plan.calib)
        source, parity = (ready, None) if ready else exporting.bring(context, given, wanted)
        source = stages.widen(context, source)
        baseline = _baseline(context, plan, source, quantized=quantized)
        checks.outputs(plan.gates, plan.measure, source)
        ranges, assumed = profile(source.inputs, plan.shapes, unread=lambda: unread(source.path))
        if assumed and plan.build.backend == "tensorrt":
            context.emit(Noted(assumed))
        # Unreadable samples must fail here, not after an hour of calibration.
        data, calib = (stages.open_samples(each, source, ranges) for each in (plan.data, plan.calib))
        stages.tell(context.emit, calib, data)
        judged_on = data or calib
        _check_samples(context, plan, source, ranges, judged_on)
        samples = _Samples(calib=calib, observed=calib or data, judged_on=judged_on)
        made = _made(context, plan, _Sources(given=source, baseline=baseline), ranges, samples)
        comparison = _compare(context, plan, made, judged_on)
        layers, fault = _explained(context, made, comparison, judged_on)
        report = replace(_report(context, plan, made, comparison, said), parity=parity, layers=layers, fault=fault)
        reporting.write(store, report)
    return report, made.unable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """The model that was given, in FP32, and the one that the result is compared with."""

    given: OnnxModel
    baseline: OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """The samples to calibrate on, to observe activations on, and to compare on."""

    calib: Dataset | None
    observed: Dataset | None
    judged_on: Dataset | None


def _check_samples(
    context: stages.Context,
    plan: ConvertPlan,
    source: OnnxModel,
    ranges: tuple[ShapeRange, ...],
    dataset: Dataset | None,
) -> None:
    """Raise an error for samples that fit neither the model nor the comparison."""
    if dataset is None:
        return
    if plan.compare:
        checks.classes(dataset, plan.measure, source)
    checks.within(dataset, source.inputs, [entry for entry in ranges if entry.name in named(plan.shapes)])
    if plan.compare:
        stages.check_randomness(context, source, dataset)


def _made(
    context: stages.Context,
    plan: ConvertPlan,
    sources: _Sources,
    ranges: tuple[ShapeRange, ...],
    samples: _Samples,
) -> Made:
    """Prepare, equalize, calibrate, observe, set the precision, and build; a given quantized model is repaired only."""
    source, quantized = sources.given, is_quantized(sources.given)
    try:
        if quantized:
            model, table = prepared(context, plan, stages.repair(context, source), ranges), None
        else:
            model, table = calibrated(context, plan, source, ranges, samples.calib)
        target = _target(context, plan, table, samples.calib, quantized=quantized)
        seen = _magnitudes(context, target, model, samples.observed, table)
        context.shared.clear()  # no trials follow
        typed = stages.set_precision(context, model, target, table, seen)
        context.store.discard("build", typed=typed.onnx.digest)  # an engine of another graph is stale
        engine, unable = _build(context, plan, typed, ranges)
    except (BuildError, DataError) as error:
        fixed = fixed_batch(source, ranges, samples.judged_on) if samples.judged_on is not None else None
        raise fixed or error from error
    return Made(
        baseline=sources.baseline,
        model=model,
        target=target,
        table=table,
        seen=seen,
        typed=typed,
        engine=engine,
        unable=unable,
        ranges=ranges,
        plan=plan.build,
    )


def _target(
    context: stages.Context,
    plan: ConvertPlan,
    table: CalibrationTable | None,
    calib: Dataset | None,
    *,
    quantized: bool,
) -> stages.Target:
    """Return the requested precision, with a warning for each flag that has no effect."""
    from trtopt.calibrate import AUTO
    from trtopt.precision import precision

    # The samples of --data are for evaluation, so they must not correct biases.
    corrects = plan.bias_correction and calib is not None
    if plan.bias_correction and table is not None and not corrects:
        context.emit(Warned("biases are not corrected: bias correction needs --calib in addition to the table"))
    needless = quantized or not precision(plan.precision).NEEDS_TABLE
    if needless and (plan.table is not None or plan.method != AUTO):
        why = "the model is quantized already" if quantized else f"{plan.precision} has no scales"
        context.emit(Warned(f"--calib-table and --method are ignored: {why}"))
    return stages.Target(precision=plan.precision, rest=plan.rest, bias_correction=corrects, keep=plan.keep)


def _explained(
    context: stages.Context, made: Made, comparison: Comparison | None, dataset: Dataset | None
) -> tuple[Layers | None, EngineFault | None]:
    """Return where a comparison that failed drifts, and the nodes that make a wrong engine wrong."""
    from trtopt.compare.witness import wrong

    if dataset is None or comparison is None or comparison.verdict != "fail":
        return None, None
    layers = layering.explained(context, made.baseline, made.typed.onnx, made.typed, dataset)
    return layers, stages.fault(context, made, dataset) if wrong(comparison) else None


def _baseline(context: stages.Context, plan: ConvertPlan, source: OnnxModel, *, quantized: bool) -> OnnxModel:
    """Return the model that the result is compared with: that of --baseline, or else the source."""
    from trtopt.graph.file import describe

    if plan.baseline is not None:
        baseline = stages.widen(context, describe(plan.baseline))
        checks.pair(baseline, source)
        return baseline
    if quantized and plan.compare:
        unknown = "what quantization costs is unknown: add --baseline with the FP32 model"
        context.emit(Warned(f"the result is compared with the given quantized model, so {unknown}"))
    return source


def _magnitudes(
    context: stages.Context,
    target: stages.Target,
    model: OnnxModel,
    dataset: Dataset | None,
    table: CalibrationTable | None,
) -> Observation | None:
    if target.precision == "fp32":
        return None
    if dataset is None:
        context.emit(Warned("no samples: activations are not checked for overflow of the 16-bit range"))
        return None
    return stages.observe(context, model, dataset, target, table)


def _build(
    context: stages.Context, plan: ConvertPlan, typed: TypedModel, ranges: tuple[ShapeRange, ...]
) -> tuple[Engine | None, TrtoptError | None]:
    try:
        return stages.build(context, typed, ranges, plan.build), None
    except (EnvironmentUnableError, MissingDependencyError) as error:
        context.emit(StageUnavailable("build", str(error)))
        context.store.outcomes.append(StageOutcome(name="build", status="unavailable", seconds=0.0, summary=str(error)))
        return None, error


def _compare(context: stages.Context, plan: ConvertPlan, made: Made, dataset: Dataset | None) -> Comparison | None:
    if not plan.compare or dataset is None:
        context.store.outcomes.append(
            StageOutcome(name="compare", status="skipped", seconds=0.0, summary="--no-compare")
        )
        return None
    evaluation = stages.Evaluation(
        dataset=dataset,
        measure=plan.measure,
        engine=made.engine,
        calibrated_on=made.table.fingerprints if made.table else (),
    )
    measured = stages.compare(context, made.baseline, made.typed.onnx, evaluation)
    if plan.data is None:  # also without fingerprints, as with a TensorRT cache or no table
        measured = replace(measured, calibrated_on=measured.samples)
    checks.measures(plan.gates, {output.output: output.kind for output in measured.outputs})
    return stages.gate(context, measured, plan.gates, plan.precision)


def _report(
    context: stages.Context,
    plan: ConvertPlan,
    made: Made,
    comparison: Comparison | None,
    said: reporting.Said,
) -> Report:
    from trtopt.calibrate import noisiest
    from trtopt.precision import precision

    run_dir = context.store.root
    calibrated = precision(plan.precision).NEEDS_TABLE and not plan.table
    return Report(
        schema_version=reporting.REPORT_SCHEMA,
        command="convert",
        verdict=comparison.verdict if comparison else "unchecked",
        model=str(plan.source),
        precision=plan.precision,
        run_dir=run_dir,
        stages=tuple(context.store.outcomes),
        typed=made.typed,
        engine=made.engine,
        comparison=comparison,
        warnings=reporting.warnings(said, comparison),
        notes=reporting.notes(said, comparison),
        environment=stages.environment(),
        calibration=noisiest.read(run_dir) if calibrated else (),
        allow_inconclusive=plan.allow_inconclusive,
    )
