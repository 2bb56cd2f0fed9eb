"""`trtopt convert`: turn a trained network into an engine with a verdict.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.calibrate import AUTO, NATIVE, method_names
from trtopt.cli.options import (
    CALIBRATION,
    COMPARISON,
    INPUT,
    PRECISION,
    TENSORRT,
    AllowDriftFlag,
    AllowInconclusiveFlag,
    ClassesFlag,
    Device,
    DeviceFlag,
    DryRunFlag,
    DtypeFlag,
    ExportTimeoutFlag,
    ForceFlag,
    Format,
    FormatFlag,
    GateFlag,
    KeepFlag,
    KindFlag,
    LabelsFlag,
    MetricFlag,
    OnlyFlag,
    OutFlag,
    QuietFlag,
    RecipeFlag,
    RestFlag,
    SamplesFlag,
    ShapeFlag,
    SignatureFlag,
    SkipBadFlag,
    VerboseFlag,
    WeightsFlag,
    cache,
    choice,
    joined,
    size,
)
from trtopt.engine import DEFAULT, backends
from trtopt.precision import precisions


def convert(
    model: Annotated[
        Path,
        typer.Argument(
            help="The trained network: FP32 ONNX, .pt2, TorchScript .pt, .keras, .h5, a SavedModel folder, or "
            "package.module:factory.",
            show_default=False,
        ),
    ],
    precision: Annotated[
        str, choice("Precision of the engine.", precisions(), PRECISION, "--precision", "-p")
    ] = "fp16",
    calib: Annotated[
        str | None,
        typer.Option(
            help="Samples to calibrate on: a folder of images, .npy, .npz, .jsonl, .parquet, module:function.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Samples to compare on, with labels if available; not those of --calib.", rich_help_panel=INPUT
        ),
    ] = None,
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    labels: LabelsFlag = None,
    skip_bad: SkipBadFlag = False,
    samples: SamplesFlag = None,
    method: Annotated[
        str,
        choice(
            "How scales are chosen. auto picks the best; native is TensorRT's own, on a GPU.",
            (AUTO, *method_names(), NATIVE),
            CALIBRATION,
        ),
    ] = AUTO,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="FP32 ONNX file to compare with, for a model that is quantized already.",
            show_default=False,
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    calib_table: Annotated[
        Path | None,
        typer.Option(
            help="Use this calibration table (JSON or TensorRT's cache) instead of calibrating.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    rest: RestFlag = "fp16",
    keep: KeepFlag = None,
    only: OnlyFlag = None,
    shape: ShapeFlag = None,
    dtype: DtypeFlag = None,
    weights: WeightsFlag = None,
    signature: SignatureFlag = None,
    allow_export_drift: AllowDriftFlag = False,
    export_timeout: ExportTimeoutFlag = 1800.0,
    no_equalization: Annotated[
        bool,
        typer.Option(
            "--no-equalization", help="Do not equalize activations across channels.", rich_help_panel=CALIBRATION
        ),
    ] = False,
    no_bias_correction: Annotated[
        bool,
        typer.Option(
            "--no-bias-correction",
            help="Do not compensate for the mean quantization error.",
            rich_help_panel=CALIBRATION,
        ),
    ] = False,
    no_guard: Annotated[
        bool,
        typer.Option(
            "--no-guard",
            help="Quantize also the nodes with which the default gates fail on calibration samples.",
            rich_help_panel=CALIBRATION,
        ),
    ] = False,
    if_faster: Annotated[
        bool,
        typer.Option(
            "--if-faster",
            help="Quantize only what that makes faster, as measured on this GPU.",
            rich_help_panel=PRECISION,
        ),
    ] = False,
    gate: GateFlag = None,
    allow_inconclusive: AllowInconclusiveFlag = False,
    kind: KindFlag = None,
    metric: MetricFlag = None,
    no_compare: Annotated[
        bool, typer.Option("--no-compare", help="Build without comparing with FP32.", rich_help_panel=COMPARISON)
    ] = False,
    no_speed: Annotated[
        bool,
        typer.Option(
            "--no-speed",
            help="Do not time the engine beside FP32 and FP16, where it runs.",
            rich_help_panel=COMPARISON,
        ),
    ] = False,
    out: OutFlag = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Platform to write the graph and a build script for, such as jetpack-6, jetpack-6-dla, triton-26.03, "
            "trt-8.6. No engine is built here.",
            show_default=False,
            rich_help_panel=TENSORRT,
        ),
    ] = None,
    backend: Annotated[
        str,
        choice("What is built. The result of onnxruntime is the typed ONNX itself.", backends(), TENSORRT),
    ] = DEFAULT,
    tensorrt: Annotated[
        str | None,
        choice("The TensorRT to use. Default: the first one found.", ("tensorrt", "tensorrt_rtx"), TENSORRT),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Builder workspace limit, such as 4GiB.", rich_help_panel=TENSORRT)
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="Builder effort, 0 to 5.", min=0, max=5, rich_help_panel=TENSORRT)
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="Build an engine that newer TensorRT versions can load.",
            rich_help_panel=TENSORRT,
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible",
            help="Build an engine for other GPUs of Ampere and later.",
            rich_help_panel=TENSORRT,
        ),
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="Builder timing cache, read and updated. Default: one in the run directory.", rich_help_panel=TENSORRT
        ),
    ] = None,
    tactic_sources: Annotated[
        str,
        typer.Option(
            help="Libraries that TensorRT's builder may use, as for trtexec: -CUDNN,+CUBLAS.", rich_help_panel=TENSORRT
        ),
    ] = "",
    device: DeviceFlag = Device.cpu,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Convert a network to a TensorRT engine, and compare it with FP32 on your data.

    \b
    Example:
      trtopt convert model.onnx --precision int8 --calib data/calib --data data/eval

    Exits 0 if every gate passes (inconclusive default gates are only reported), 1 if one fails, 2 on an error, 3 if
    this machine cannot build the engine, 4 if a gate of --gate is inconclusive.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish, rehearsed
    from trtopt.commands.convert import convert as run
    from trtopt.commands.rehearse import rehearse
    from trtopt.engine.trt.platforms import platform
    from trtopt.errors import UsageError
    from trtopt.export.source import identify
    from trtopt.flags import gates, input_dtypes, keeps, lowered_only, output_kinds
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan, ExportPlan, MeasurePlan
    from trtopt.shapes import parse_shapes

    source = data or calib
    if (classes or labels) and not source:
        raise UsageError(f"{'--classes' if classes else '--labels'} needs samples to compare on", fix="Add --data DATA")
    judged_on = (
        DataPlan(source=source, recipe=recipe, classes=classes, labels=labels, skip_bad=skip_bad, samples=samples)
        if source
        else None
    )
    # Calibration uses no labels.
    plain = DataPlan(source=calib, recipe=recipe, skip_bad=skip_bad, samples=samples) if calib else None
    if target and (backend != DEFAULT or tensorrt):
        flag = "--tensorrt" if tensorrt else "--backend"
        raise UsageError(
            f"{flag} cannot be combined with --target", why="no engine is built", fix="Leave out one of them"
        )
    drift, timed = gates(joined(gate))
    if timed and no_speed:
        raise UsageError(f"--gate {timed[0].metric} cannot be combined with --no-speed", fix="Leave out one of them")
    plan = ConvertPlan(
        source=model,
        precision=precision,
        run_dir=out or rundir.of_source(identify(str(model)), precision),
        rest=rest,
        baseline=baseline,
        calib=plain if data else judged_on,
        method=method,
        table=calib_table,
        data=judged_on if data else None,
        equalization=not no_equalization,
        bias_correction=not no_bias_correction,
        guard=not no_guard,
        if_faster=if_faster,
        keep=keeps(keep or (), precision, rest),
        only=lowered_only(only or (), precision),
        compare=not no_compare,
        measure=MeasurePlan(kinds=output_kinds(kind or ()), metrics=tuple(metric or ())),
        gates=drift,
        speed=not no_speed,
        speed_gates=timed,
        allow_inconclusive=allow_inconclusive,
        shapes=parse_shapes(shape or ()),
        device=device.value,
        cache=cache(dry_run=dry_run, force=force),
        export=ExportPlan(
            dtypes=input_dtypes(dtype or ()),
            weights=weights,
            signature=signature,
            timeout=export_timeout,
            allow_drift=allow_export_drift,
        ),
        build=BuildPlan(
            backend=backend,
            tensorrt=tensorrt,
            workspace_bytes=size(workspace, "--workspace"),
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            timing_cache=timing_cache,
            tactic_sources=tactic_sources,
        ),
        target=platform(target) if target else None,
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        if dry_run:
            rehearsed(rehearse(plan, lambda record: run(plan, record), emit), format.value)
        report, unable = run(plan, emit)
    finish(report, Printed(format=format.value, told=emit.told), unable)
