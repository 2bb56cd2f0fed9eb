"""The pipeline, from top to bottom: export, parity, prepare, calibrate, observe, precision, build, compare,
gate, layers (when the gate failed), report.

What each stage does stands in `trtopt.stages`; how, in the folder of its name. Here is only what follows what.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from dataclasses import replace

from trtopt import checks, stages
from trtopt.config import ConvertPlan, DataPlan, ExportOnlyPlan
from trtopt.data.dataset import Dataset
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, TrtoptError, UsageError
from trtopt.events import Emit, StageUnavailable, Warned, silent
from trtopt.shapes import fixed, named, of_profile, profile
from trtopt.stages import export as exporting
from trtopt.stages import layers as layering
from trtopt.stages import report as reporting
from trtopt.stages import tables
from trtopt.store import open_store
from trtopt.types import (
    CalibrationTable,
    Comparison,
    Engine,
    Observation,
    OnnxModel,
    Report,
    ShapeRange,
    StageOutcome,
    TypedModel,
)


def convert(plan: ConvertPlan, emit: Emit = silent) -> tuple[Report, TrtoptError | None]:
    """Convert a model, and judge what came out.

    Returns the report, and the reason why this machine could not build the engine (None when it could): everything that
    does not need TensorRT has been done all the same.

    Raises:
        TrtoptError: a stage failed; what earlier stages made stays in the store.
    """
    from trtopt.calibrate import AUTO
    from trtopt.export.source import identify
    from trtopt.precision import precision

    checks.compared(plan)
    checks.names(plan)
    kind = precision(plan.precision)
    given = identify(str(plan.source))
    checks.data_flags(plan, needs_table=kind.NEEDS_TABLE)
    ready = exporting.ready(given, plan.export)
    if ready is not None:
        profile(ready.inputs, plan.shapes, lambda: stages.sizes((plan.data, plan.calib), ready))  # before all else
    warnings: list[str] = []
    with open_store(plan.run_dir, emit) as store:
        reporting.forget(store)
        context = stages.Context(store=store, emit=reporting.recording(emit, warnings), device=plan.device)
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data or plan.calib)
        source, parity = (ready, None) if ready else exporting.bring(context, given, wanted)
        checks.outputs(plan.gates, plan.measure, source)
        ranges, assumed = profile(source.inputs, plan.shapes)
        if assumed and plan.build.backend == "tensorrt":
            context.emit(Warned(assumed))
        # Before an hour of calibration, if they cannot be read.
        data, calib = (_open(context, each, source, ranges) for each in (plan.data, plan.calib))
        judged_on = data or calib
        if judged_on is not None:
            if plan.compare:
                checks.classes(judged_on, plan.measure, source)
            checks.within(judged_on, source.inputs, [entry for entry in ranges if entry.name in named(plan.shapes)])
        if judged_on is not None and plan.compare:
            stages.check_randomness(context, source, judged_on)
        model, table = _calibrated(context, plan, source, ranges, calib)
        # Not by the samples of --data: the result is judged on them.
        corrects = plan.bias_correction and calib is not None
        if plan.bias_correction and table is not None and not corrects:
            context.emit(Warned("biases are not corrected: that takes the samples of --calib, beside the table"))
        if not kind.NEEDS_TABLE and (plan.table is not None or plan.method != AUTO):
            context.emit(Warned(f"--calib-table and --method do nothing here: {plan.precision} has no scales"))
        target = stages.Target(precision=plan.precision, rest=plan.rest, bias_correction=corrects)
        seen = _magnitudes(context, target, model, calib or data, table)
        typed = stages.set_precision(context, model, target, table, seen)
        store.discard("build", typed=typed.onnx.digest)  # the engine of an earlier graph is not this one's
        engine, unable = _build(context, plan, typed, ranges)
        comparison = _compare(context, plan, source, typed, judged_on, table)
        layers = None
        if judged_on is not None and comparison is not None and comparison.verdict == "fail":
            layers = layering.explained(context, source, typed.onnx, typed, judged_on)
        report = replace(_report(context, plan, typed, engine, comparison, warnings), parity=parity, layers=layers)
        reporting.write(store, report)
    return report, unable


def calibrate(plan: ConvertPlan, emit: Emit = silent) -> CalibrationTable:
    """Only the first half of `convert`: leave a calibration table in `plan.run_dir`, and return it.

    Raises:
        TrtoptError: as `convert`.
    """
    from trtopt.export.source import identify

    checks.names(plan)
    given = identify(str(plan.source))
    checks.calibrates(plan)
    checks.data_flags(plan, needs_table=True)
    with open_store(plan.run_dir, emit) as store:
        context = stages.Context(store=store, emit=emit, device=plan.device)
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.calib)
        source = exporting.ready(given, plan.export) or exporting.bring(context, given, wanted)[0]
        ranges, _ = profile(source.inputs, plan.shapes, lambda: stages.sizes((plan.calib,), source))
        calib = _open(context, plan.calib, source, ranges)
        model, table = _calibrated(context, plan, source, ranges, calib)
        assert table is not None
        tables.drop_other_graph(store, model, table)
        if not store.holds("precision"):
            reporting.forget(store)
        store.describe(stages.environment())
    return table


def export(plan: ExportOnlyPlan, emit: Emit = silent) -> Report:
    """Export a framework's model to ONNX, and compare the two.

    Raises:
        TrtoptError: it cannot be exported, or the export drifted.
    """
    from trtopt.export.onnx import copy
    from trtopt.export.source import identify

    given = identify(str(plan.source))
    if exporting.ready(given, plan.export) is not None:
        raise UsageError(f"{plan.source} is ONNX already", fix="Give it to trtopt convert as it is")
    warnings: list[str] = []
    with open_store(plan.run_dir, emit) as store:
        reporting.forget(store)
        context = stages.Context(store=store, emit=reporting.recording(emit, warnings), device=plan.device)
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data)
        model, parity = exporting.bring(context, given, wanted)
        copy(model.path, plan.out)
        report = Report(
            schema_version=reporting.REPORT_SCHEMA,
            command="export",
            verdict=parity.verdict if parity.verdict == "pass" else "unchecked",  # a drift that was not allowed raises
            model=str(plan.source),
            precision="",
            run_dir=store.root,
            stages=tuple(store.outcomes),
            typed=None,
            engine=None,
            comparison=None,
            warnings=reporting.remarks(warnings),
            environment=stages.environment(),
            parity=parity,
        )
        reporting.write(store, report)
    return report


def _open(
    context: stages.Context, data: DataPlan | None, source: OnnxModel, ranges: tuple[ShapeRange, ...]
) -> Dataset | None:
    """Open samples for the network as it will be: with the dimensions fixed that the profile fixes."""
    if data is None:
        return None
    dataset = stages.open_data(data, replace(source, inputs=fixed(source.inputs, of_profile(ranges))))
    for note in dataset.notes:
        context.emit(Warned(f"{data.source}: {note}"))
    return dataset


def _calibrated(
    context: stages.Context,
    plan: ConvertPlan,
    source: OnnxModel,
    ranges: tuple[ShapeRange, ...],
    calib: Dataset | None,
) -> tuple[OnnxModel, CalibrationTable | None]:
    """Prepare, and for a precision that needs a table equalize and calibrate."""
    from trtopt.precision import precision

    kind = precision(plan.precision)
    table = tables.read(context, plan, calib) if kind.NEEDS_TABLE else None
    opset = max(kind.OPSET, precision(plan.rest).OPSET) if kind.NEEDS_TABLE else kind.OPSET
    model = stages.prepare(context, source, ranges, opset)
    stages.check_operators(context, model, plan.build)
    if not kind.NEEDS_TABLE:
        return model, None
    if calib is not None and (plan.equalization if table is None else tables.of_equalized(table)):
        model = stages.equalize(context, model, calib, table.precision if table else plan.precision)
    if table is not None:
        tables.follow(context, plan, model, table)
    elif calib is not None:
        if remark := checks.few(calib):
            context.emit(Warned(remark))
        table = stages.calibrate(context, model, calib, plan.method, plan.precision)
    return model, table


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
        context.emit(Warned("without samples, activations are not checked against the 16-bit range"))
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


def _compare(
    context: stages.Context,
    plan: ConvertPlan,
    source: OnnxModel,
    typed: TypedModel,
    dataset: Dataset | None,
    table: CalibrationTable | None,
) -> Comparison | None:
    if not plan.compare or dataset is None:
        context.store.outcomes.append(
            StageOutcome(name="compare", status="skipped", seconds=0.0, summary="--no-compare")
        )
        return None
    evaluation = stages.Evaluation(
        dataset=dataset,
        measure=plan.measure,
        ran="" if plan.build.backend == "onnxruntime" else stages.ENGINE_NOT_RUN,
        calibrated_on=table.fingerprints if table else (),
    )
    measured = stages.compare(context, source, typed.onnx, evaluation)
    if plan.data is None:  # also where nothing knows their fingerprints: a TensorRT cache, a precision without scales
        measured = replace(measured, calibrated_on=measured.samples)
    return stages.gate(context, measured, plan.gates)


def _report(
    context: stages.Context,
    plan: ConvertPlan,
    typed: TypedModel,
    engine: Engine | None,
    comparison: Comparison | None,
    warnings: list[str],
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
        typed=typed,
        engine=engine,
        comparison=comparison,
        warnings=reporting.remarks(warnings, comparison),
        environment=stages.environment(),
        calibration=noisiest.read(run_dir) if calibrated else (),
        allow_inconclusive=plan.allow_inconclusive,
    )
