"""Pipeline of stages, in order: export, parity, widen, read, repair, prepare, calibrate, observe, timing (if asked),
guard or tune, precision, build, compare, gate, layers (when the gate failed), report.

This module only orders the stages. `trtopt.stages` implements them, with the packages of the same names.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from dataclasses import replace

from trtopt import stages
from trtopt.commands import checks
from trtopt.commands.calibrate import calibrated, prepared
from trtopt.commands.conclusion import explained, judged, reported, timed
from trtopt.commands.samples import Samples, open_all
from trtopt.commands.suggest import on_device
from trtopt.data.dataset import Dataset
from trtopt.engine import backend, compiler
from trtopt.engine.trt.options import check_target_options
from trtopt.engine.trt.platforms import Platform, check_precision
from trtopt.errors import BuildError, DataError, EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.events import Emit, silent
from trtopt.export.source import Source, identify
from trtopt.plan import ConvertPlan
from trtopt.precision import precision
from trtopt.run import Run, open_run
from trtopt.shapes import profile
from trtopt.stages import export as exporting
from trtopt.stages.batch import fixed_batch
from trtopt.stages.made import Made
from trtopt.stages.repair import is_quantized
from trtopt.store import read_result
from trtopt.types import (
    GUARDED,
    Benchmark,
    CalibrationTable,
    Engine,
    Observation,
    OnnxModel,
    Report,
    ShapeRange,
    Tuning,
    TypedModel,
)


def convert(plan: ConvertPlan, emit: Emit = silent) -> tuple[Report, TrtoptError | None]:
    """Convert a model, and compare the result with FP32.

    Returns the report, and the reason why no engine could be built on this machine (None if one was built). All steps
    that do not need TensorRT have completed in either case.

    Raises:
        TrtoptError: a stage failed; the results of earlier stages stay in the store.
    """
    given = identify(str(plan.source))
    ready = _checked(plan, given)
    with open_run(plan.run_dir, emit, plan.device, plan.cache) as run:
        run.forget()
        source, parity = (ready, None) if ready else exporting.bring(run, given, _wanted(plan))
        source = stages.widen(run, source)
        baseline = _baseline(run, plan, source)
        ranges = _ranges(run, plan, source)
        if plan.target is not None and plan.target.dla:
            stages.check_fixed(plan.target, ranges)
        samples = open_all(run, plan, source, ranges)
        made = _made(run, plan, source, baseline, ranges, samples)
        files = stages.aim(run, made, _aim(run, plan, plan.target, made)) if plan.target else None
        made, comparison, fault = judged(run, plan, made, samples.judged)
        layers = explained(run, made, comparison, samples.judged)
        benchmark = _benchmark(run, plan, made, samples.judged) if plan.speed else None
        if compiler(plan.build.backend) and (benchmark is None or not benchmark.timings):
            _tell_of_guard(run, made)
        report = timed(reported(run, plan, made, comparison), benchmark)
        report = run.finish(replace(report, target=files, parity=parity, layers=layers, fault=fault))
    return report, made.unable


def _checked(plan: ConvertPlan, given: Source) -> OnnxModel | None:
    """Refuse a plan that cannot succeed, before anything is run; return the model if it is ONNX already."""
    from trtopt.graph.unread import unread

    checks.compared(plan)
    checks.names(plan)
    if plan.if_faster:
        stages.check_timing(plan.build, "--speed engine" if plan.tuning else "--if-faster")
    if plan.target is None:
        backend(plan.build.backend).check_options(plan.build)
    else:
        check_precision(plan.target, plan.precision, plan.rest)
        check_target_options(plan.target, plan.build)
    scaled = precision(plan.precision).FORMAT.scaled
    ready = exporting.ready(given, plan.export)
    checks.data_flags(plan, needs_table=scaled and not (ready is not None and is_quantized(ready)))
    if ready is not None:
        known = ready
        profile(
            known.inputs, plan.shapes, lambda: stages.sizes((plan.data, plan.calib), known), lambda: unread(known.path)
        )  # fail fast on a bad --shape
    return ready


def _tell_of_guard(run: Run, made: Made) -> None:
    """Say what the nodes that the guard keeps may cost, as the engine is not timed."""
    count = sum(each.reason.startswith(GUARDED) for each in made.target.keep)
    if count:
        nodes = f"the {count} nodes" if count > 1 else "the node"
        kept = f"{nodes} that the guard keeps in {made.target.rest}"
        run.note(f"not timed: the copies around {kept} can make the engine slower than FP16. Time both on the GPU")


def _benchmark(run: Run, plan: ConvertPlan, made: Made, samples: Dataset | None) -> Benchmark | None:
    from trtopt.stages.speed import speed

    return speed(run, made, samples, plan.speed_gates)


def _wanted(plan: ConvertPlan) -> exporting.Wanted:
    return exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data or plan.calib)


def _ranges(run: Run, plan: ConvertPlan, source: OnnxModel) -> tuple[ShapeRange, ...]:
    """Return the shape ranges of the dynamic inputs, after checking the flags about outputs."""
    from trtopt.graph.unread import unread

    checks.outputs(plan.gates, plan.measure, source)
    ranges, assumed = profile(source.inputs, plan.shapes, unread=lambda: unread(source.path))
    if assumed and compiler(plan.build.backend):
        run.note(assumed)
    return ranges


def _made(
    run: Run,
    plan: ConvertPlan,
    source: OnnxModel,
    baseline: OnnxModel,
    ranges: tuple[ShapeRange, ...],
    samples: Samples,
) -> Made:
    """Prepare, equalize, calibrate, observe, set the precision, and build; a given quantized model is repaired only."""
    quantized = is_quantized(source)
    try:
        if quantized:
            model, table = prepared(run, plan, stages.repair(run, source), ranges), None
        else:
            model, table = calibrated(run, plan, source, ranges, samples.calib)
        target = _target(run, plan, table, samples.calib, quantized=quantized)
        seen = _magnitudes(run, target, model, samples.observed, table)
        tuning = None
        if table is not None and seen is not None:
            subject = stages.Subject(baseline=baseline, model=model, target=target, table=table, seen=seen)
            target, tuning = _chosen(run, plan, subject, ranges, samples)
        run.shared.clear()  # no trials follow
        typed = stages.set_precision(run, model, target, table, seen)
        stages.rebuild(run, typed)
        _discard_stale(run, plan, typed)
        engine, unable = _build(run, plan, typed, ranges) if plan.target is None else (None, None)
    except (BuildError, DataError) as error:
        fixed = fixed_batch(source, ranges, samples.judged) if samples.judged is not None else None
        raise fixed or error from error
    return Made(
        baseline=baseline,
        model=model,
        target=target,
        table=table,
        seen=seen,
        typed=typed,
        engine=engine,
        unable=unable,
        ranges=ranges,
        plan=plan.build,
        tuning=tuning,
    )


def _discard_stale(run: Run, plan: ConvertPlan, typed: TypedModel) -> None:
    """Delete an engine and files for a device that are of another graph, and an engine that is not for `--target`.

    What this run does not make again is told.
    """
    adopted = stages.has_adopted(run)
    if run.store.discard("build", typed=typed.onnx.digest) and adopted:
        run.note("the engine that was adopted is removed: it was built from another graph")
    if run.store.discard("target", typed=typed.onnx.digest) and plan.target is None:
        run.note("the files of an earlier --target are removed: they are of another graph")
    if plan.target is not None and not stages.has_adopted(run) and run.store.discard("build"):
        run.note(f"the engine of an earlier run is removed: it is not for {plan.target.name}")


def _chosen(
    run: Run, plan: ConvertPlan, subject: stages.Subject, ranges: tuple[ShapeRange, ...], samples: Samples
) -> tuple[stages.Target, Tuning | None]:
    """Return the target with the nodes that are not quantized after all, and the search for them if there was one."""
    site, times, tuning = None, None, None
    if plan.if_faster and samples.observed is not None:
        site = stages.Site(ranges=ranges, plan=plan.build, samples=samples.observed)
        target, times = stages.timing(run, subject, site)
        subject = replace(subject, target=target)
    target = subject.target
    if samples.halves is not None:
        target, tuning = stages.tune(run, subject, samples.halves, plan, times)
    elif plan.guard and samples.calib is not None:
        target = stages.guard(run, subject, samples.calib, plan.measure, labelled=samples.labelled)
    if site is not None and target != subject.target:
        # Other nodes are beside a reformat now.
        target, times = stages.timing(run, replace(subject, target=target), site, "retiming")
        tuning = tuning and stages.without(tuning, times.keep)
    return target, tuning


def _target(
    run: Run,
    plan: ConvertPlan,
    table: CalibrationTable | None,
    calib: Dataset | None,
    *,
    quantized: bool,
) -> stages.Target:
    """Return the requested precision, with a warning for each flag that has no effect."""
    from trtopt.calibrate import AUTO

    # The samples of --data are for evaluation, so they must not correct biases.
    corrects = plan.bias_correction and calib is not None
    if plan.bias_correction and table is not None and not corrects:
        run.warn("biases are not corrected: bias correction needs --calib in addition to the table")
    needless = quantized or not precision(plan.precision).FORMAT.scaled
    if needless and (plan.table is not None or plan.method != AUTO):
        why = "the model is quantized already" if quantized else f"{plan.precision} has no scales"
        run.warn(f"--calib-table and --method are ignored: {why}")
    return stages.Target(
        precision=plan.precision, rest=plan.rest, bias_correction=corrects, keep=plan.keep, only=plan.only
    )


def _baseline(run: Run, plan: ConvertPlan, source: OnnxModel) -> OnnxModel:
    """Return the model that the result is compared with: that of --baseline, or else the source."""
    from trtopt.graph.file import describe

    if plan.baseline is not None:
        baseline = stages.widen(run, describe(plan.baseline))
        checks.pair(baseline, source)
        return baseline
    if is_quantized(source) and plan.compare:
        unknown = "what quantization costs is unknown: add --baseline with the FP32 model"
        run.warn(f"the result is compared with the given quantized model, so {unknown}")
    return source


def _magnitudes(
    run: Run,
    target: stages.Target,
    model: OnnxModel,
    dataset: Dataset | None,
    table: CalibrationTable | None,
) -> Observation | None:
    if target.precision == "fp32":
        return None
    if dataset is None:
        run.warn("no samples: activations are not checked for overflow of the 16-bit range")
        return None
    return stages.observe(run, model, dataset, target, table)


def _build(
    run: Run, plan: ConvertPlan, typed: TypedModel, ranges: tuple[ShapeRange, ...]
) -> tuple[Engine | None, TrtoptError | None]:
    try:
        return stages.build(run, typed, ranges, plan.build), None
    except (EnvironmentUnableError, MissingDependencyError) as error:
        run.unavailable("build", error)
        return None, error


def _aim(run: Run, plan: ConvertPlan, target: Platform, made: Made) -> stages.Aim:
    from trtopt.bench.inputs import Sizes
    from trtopt.stages.speed import timed_batches

    # The prepared model computes what the source does, and is copied to the device with the run.
    own = read_result(run.store.root, "prepare", OnnxModel)
    baseline = made.baseline if plan.baseline or own is None else own
    batches = timed_batches(Sizes(inputs=made.typed.onnx.inputs, ranges=made.ranges), plan.speed_gates)
    return stages.Aim(target=target, judge=on_device(plan, run.store.root, baseline.path, batches))
