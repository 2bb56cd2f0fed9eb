"""`trtopt sensitivity`: what quantizing each group of nodes costs in accuracy.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.calibrate import AUTO, method_names
from trtopt.cli.options import (
    CALIBRATION,
    INPUT,
    PRECISION,
    AllowDriftFlag,
    Device,
    DeviceFlag,
    DryRunFlag,
    DtypeFlag,
    ExportTimeoutFlag,
    ForceFlag,
    Format,
    FormatFlag,
    KeepFlag,
    OnlyFlag,
    OutFlag,
    QuietFlag,
    RayCoresFlag,
    RayFlag,
    RecipeFlag,
    RestFlag,
    SamplesFlag,
    ShapeFlag,
    ShardFlag,
    SignatureFlag,
    SkipBadFlag,
    VerboseFlag,
    WeightsFlag,
    cache,
    choice,
)


def sensitivity(
    model: Annotated[Path, typer.Argument(help="The trained network, as for convert.", show_default=False)],
    calib: Annotated[
        str,
        typer.Option(
            help="Samples to calibrate on: a folder of images, .npy, .npz, .jsonl, .parquet, module:function.",
            rich_help_panel=INPUT,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Samples to measure on. Default: those of --calib.", rich_help_panel=INPUT),
    ] = None,
    precision: Annotated[
        str, choice("Precision of what is quantized.", ("int8", "fp8"), PRECISION, "--precision", "-p")
    ] = "int8",
    rest: RestFlag = "fp16",
    keep: KeepFlag = None,
    only: OnlyFlag = None,
    recipe: RecipeFlag = None,
    skip_bad: SkipBadFlag = False,
    samples: SamplesFlag = None,
    method: Annotated[
        str, choice("How scales are chosen. auto picks the best of the others.", (AUTO, *method_names()), CALIBRATION)
    ] = AUTO,
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
    shard: ShardFlag = None,
    ray: RayFlag = None,
    ray_cores: RayCoresFlag = 4,
    out: OutFlag = None,
    device: DeviceFlag = Device.cpu,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Measure what quantizing each group of nodes costs in accuracy: with only it quantized, and with all but it.

    \b
    Example:
      trtopt sensitivity model.onnx --calib data/calib --data data/eval

    Groups are nodes that share a quantizer. The worst fifth is measured on 16 samples; the rest is estimated from 2.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish, rehearsed
    from trtopt.commands.rehearse import rehearse
    from trtopt.commands.sensitivity import KIND, sensitivity_shard
    from trtopt.commands.sensitivity import sensitivity as run
    from trtopt.commands.spread import spread
    from trtopt.export.source import identify
    from trtopt.flags import input_dtypes, keeps, lowered_only
    from trtopt.plan import ConvertPlan, DataPlan, ExportPlan
    from trtopt.shapes import parse_shapes
    from trtopt.shards.cluster import Cluster
    from trtopt.shards.shard import parse_shard
    from trtopt.types import Report

    plan = ConvertPlan(
        source=model,
        precision=precision,
        run_dir=out or rundir.of_source(identify(str(model)), "sensitivity"),
        rest=rest,
        calib=DataPlan(source=calib, recipe=recipe, skip_bad=skip_bad, samples=samples),
        method=method,
        data=DataPlan(source=data, recipe=recipe, skip_bad=skip_bad, samples=samples) if data else None,
        equalization=not no_equalization,
        bias_correction=not no_bias_correction,
        keep=keeps(keep or (), precision, rest),
        only=lowered_only(only or (), precision),
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
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        if dry_run:
            rehearsed(rehearse(plan, lambda record: run(plan, record), emit, last="sensitivity"), format.value)
        if shard:
            print(sensitivity_shard(plan, parse_shard(shard), emit))
            return
        report = spread(plan, Cluster(address=ray, cores=ray_cores), emit, kind=KIND) if ray else run(plan, emit)
        assert isinstance(report, Report)
    finish(report, Printed(format=format.value, told=emit.told))
