"""`trtopt convert`: turn a trained network into an engine with a verdict.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.calibrate import method_names
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
    KeepFlag,
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
    precision: Annotated[str, typer.Option("--precision", "-p", help=f"One of {', '.join(precisions())}.")] = "fp16",
    calib: Annotated[
        str | None,
        typer.Option(
            help="Samples to calibrate on: a folder of images, .npy, .npz, .jsonl, .parquet, module:function."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Samples to compare on, with labels if available; not those of --calib.")
    ] = None,
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    labels: LabelsFlag = None,
    skip_bad: SkipBadFlag = False,
    method: Annotated[
        str, typer.Option(help=f"How scales are chosen. auto picks the best of {', '.join(method_names())}.")
    ] = "auto",
    baseline: Annotated[
        Path | None,
        typer.Option(help="FP32 ONNX file to compare with, for a model that is quantized already.", show_default=False),
    ] = None,
    calib_table: Annotated[
        Path | None, typer.Option(help="Use this calibration table (JSON or TensorRT's cache) instead of calibrating.")
    ] = None,
    rest: Annotated[
        str, typer.Option(help="Fallback precision of nodes that are not quantized: fp16, bf16 or fp32.")
    ] = "fp16",
    keep: KeepFlag = None,
    shape: ShapeFlag = None,
    dtype: DtypeFlag = None,
    weights: WeightsFlag = None,
    signature: SignatureFlag = None,
    allow_export_drift: AllowDriftFlag = False,
    export_timeout: ExportTimeoutFlag = 1800.0,
    no_equalization: Annotated[
        bool, typer.Option("--no-equalization", help="Do not equalize activations across channels.")
    ] = False,
    no_bias_correction: Annotated[
        bool, typer.Option("--no-bias-correction", help="Do not compensate for the mean quantization error.")
    ] = False,
    gate: GateFlag = None,
    allow_inconclusive: AllowInconclusiveFlag = False,
    kind: KindFlag = None,
    metric: MetricFlag = None,
    no_compare: Annotated[bool, typer.Option("--no-compare", help="Build without comparing with FP32.")] = False,
    out: OutFlag = None,
    backend: Annotated[
        str, typer.Option(help=f"One of {', '.join(backends())}. The result of onnxruntime is the typed ONNX itself.")
    ] = DEFAULT,
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
    tactic_sources: Annotated[
        str, typer.Option(help="Libraries that TensorRT's builder may use, as for trtexec: -CUDNN,+CUBLAS.")
    ] = "",
    device: DeviceFlag = Device.cpu,
    format: FormatFlag = Format.text,
) -> None:
    """Convert a network to a TensorRT engine, and compare it with FP32 on your data.

    Exits 0 if every gate passes (inconclusive default gates are only reported), 1 if one fails, 2 on an error, 3 if
    this machine cannot build the engine, 4 if a gate of --gate is inconclusive.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import finish
    from trtopt.commands.convert import convert as run
    from trtopt.compare.gates import parse_gates
    from trtopt.errors import UsageError
    from trtopt.export.source import identify
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan, ExportPlan, MeasurePlan, input_dtypes, keeps, output_kinds
    from trtopt.shapes import parse_shapes

    source = data or calib
    if (classes or labels) and not source:
        raise UsageError(f"{'--classes' if classes else '--labels'} needs samples to compare on", fix="Add --data DATA")
    judged_on = (
        DataPlan(source=source, recipe=recipe, classes=classes, labels=labels, skip_bad=skip_bad) if source else None
    )
    # Calibration uses no labels.
    plain = DataPlan(source=calib, recipe=recipe, skip_bad=skip_bad) if calib else None
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
        keep=keeps(keep or (), precision, rest),
        compare=not no_compare,
        measure=MeasurePlan(kinds=output_kinds(kind or ()), metrics=tuple(metric or ())),
        gates=parse_gates(joined(gate)),
        allow_inconclusive=allow_inconclusive,
        shapes=parse_shapes(shape or ()),
        device=device.value,
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
            workspace_bytes=workspace * 2**20 if workspace else None,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            timing_cache=timing_cache,
            tactic_sources=tactic_sources,
        ),
    )
    with Narrator() as emit:
        report, unable = run(plan, emit)
    finish(report, format.value, unable)
