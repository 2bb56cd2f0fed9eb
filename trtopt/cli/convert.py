"""`trtopt convert`: from a trained network to a judged engine.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import (
    AllowDriftFlag,
    AllowInconclusiveFlag,
    ClassesFlag,
    Device,
    DeviceFlag,
    DtypeFlag,
    ExportTimeoutFlag,
    Format,
    FormatFlag,
    GateFlag,
    KindFlag,
    LabelsFlag,
    MetricFlag,
    OutFlag,
    RecipeFlag,
    ShapeFlag,
    SignatureFlag,
    SkipBadFlag,
    WeightsFlag,
    joined,
)


def convert(
    model: Annotated[
        Path,
        typer.Argument(
            help="The trained network: FP32 ONNX, .pt2, TorchScript .pt, .keras, .h5, a SavedModel folder, or "
            "package.module:factory.",
            show_default=False,
        ),
    ],
    precision: Annotated[str, typer.Option("--precision", "-p", help="fp32, fp16, bf16, int8 or fp8.")] = "fp16",
    calib: Annotated[
        str | None,
        typer.Option(
            help="Samples to calibrate on: a folder of pictures, .npy, .npz, .jsonl, .parquet, module:function."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Samples to compare on, with labels where there are any. Not those of --calib.")
    ] = None,
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    labels: LabelsFlag = None,
    skip_bad: SkipBadFlag = False,
    method: Annotated[
        str, typer.Option(help="How scales are chosen. auto tries mse, entropy, percentile and minmax.")
    ] = "auto",
    calib_table: Annotated[
        Path | None, typer.Option(help="Use this calibration table (JSON, or TensorRT's cache) instead of calibrating.")
    ] = None,
    rest: Annotated[str, typer.Option(help="Type of what is not quantized: fp16, bf16 or fp32.")] = "fp16",
    shape: ShapeFlag = None,
    dtype: DtypeFlag = None,
    weights: WeightsFlag = None,
    signature: SignatureFlag = None,
    allow_export_drift: AllowDriftFlag = False,
    export_timeout: ExportTimeoutFlag = 1800.0,
    no_equalization: Annotated[
        bool, typer.Option("--no-equalization", help="Do not bring the channels of activations to similar ranges.")
    ] = False,
    no_bias_correction: Annotated[
        bool, typer.Option("--no-bias-correction", help="Do not correct biases for what rounding loses on average.")
    ] = False,
    gate: GateFlag = None,
    allow_inconclusive: AllowInconclusiveFlag = False,
    kind: KindFlag = None,
    metric: MetricFlag = None,
    no_compare: Annotated[bool, typer.Option("--no-compare", help="Build without a verdict.")] = False,
    out: OutFlag = None,
    backend: Annotated[
        str, typer.Option(help="tensorrt, or onnxruntime: the typed ONNX itself is the result.")
    ] = "tensorrt",
    tensorrt: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt_rtx. Default: the first one found.")
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="Builder workspace limit in MiB.", min=1)] = None,
    optimization_level: Annotated[int | None, typer.Option(help="Builder effort, 0 to 5.", min=0, max=5)] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Build an engine that newer TensorRT versions can load.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Build an engine for other GPUs of Ampere and later.")
    ] = False,
    timing_cache: Annotated[Path | None, typer.Option(help="Builder timing cache, read and updated.")] = None,
    device: DeviceFlag = Device.cpu,
    format: FormatFlag = Format.text,
) -> None:
    """Convert a network to a TensorRT engine, and judge it against FP32 on your data.

    Exits 0 when every gate passes (too few samples for a default one are reported only), 1 when one fails, 2 on an
    error, 3 when this machine has no TensorRT, 4 when a gate of --gate is inconclusive.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import finish
    from trtopt.config import BuildPlan, ConvertPlan, DataPlan, ExportPlan, MeasurePlan
    from trtopt.errors import UsageError
    from trtopt.export.source import identify
    from trtopt.pipeline import convert as run

    source = data or calib
    if (classes or labels) and not source:
        raise UsageError(
            f"{'--classes' if classes else '--labels'} is for samples to compare on", fix="Add --data DATA"
        )
    judged_on = (
        DataPlan(source=source, recipe=recipe, classes=classes, labels=labels, skip_bad=skip_bad) if source else None
    )
    # Calibration takes no labels.
    plain = DataPlan(source=calib, recipe=recipe, skip_bad=skip_bad) if calib else None
    plan = ConvertPlan(
        source=model,
        precision=precision,
        run_dir=out or rundir.of_source(identify(str(model)), precision),
        rest=rest,
        calib=plain if data else judged_on,
        method=method,
        table=calib_table,
        data=judged_on if data else None,
        equalization=not no_equalization,
        bias_correction=not no_bias_correction,
        compare=not no_compare,
        measure=MeasurePlan(kinds=tuple(kind or ()), metrics=tuple(metric or ())),
        gates=joined(gate),
        allow_inconclusive=allow_inconclusive,
        shapes=tuple(shape or ()),
        device=device.value,
        export=ExportPlan(
            dtypes=tuple(dtype or ()),
            weights=weights,
            signature=signature,
            timeout=export_timeout,
            allow_drift=allow_export_drift,
        ),
        build=BuildPlan(
            backend=backend,
            tensorrt=tensorrt,
            workspace_bytes=workspace * 2**20 if workspace else None,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            timing_cache=timing_cache,
        ),
    )
    with Narrator() as emit:
        report, unable = run(plan, emit)
    finish(report, format.value, unable)
