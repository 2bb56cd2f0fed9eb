"""`trtopt calibrate`: write a calibration table for an ONNX file, and nothing else.

Touches: the run directory; prints the table's summary on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.calibrate import AUTO, NATIVE, method_names
from trtopt.cli.options import (
    CALIBRATION,
    INPUT,
    PRECISION,
    Device,
    DeviceFlag,
    DryRunFlag,
    ForceFlag,
    OnlyFlag,
    OutFlag,
    QuietFlag,
    RayCoresFlag,
    RayFlag,
    RecipeFlag,
    SamplesFlag,
    ShapeFlag,
    ShardFlag,
    SkipBadFlag,
    VerboseFlag,
    cache,
    choice,
)


def calibrate(
    model: Annotated[Path, typer.Argument(help="The trained network, as FP32 ONNX.", show_default=False)],
    calib: Annotated[
        str,
        typer.Option(
            help="Samples: a folder of images, .npy, .npz, .jsonl, .parquet, module:function.", rich_help_panel=INPUT
        ),
    ],
    precision: Annotated[
        str, choice("Precision of the table.", ("int8", "fp8"), PRECISION, "--precision", "-p")
    ] = "int8",
    method: Annotated[
        str,
        choice(
            "How scales are chosen. auto picks the best; native is TensorRT's own, on a GPU.",
            (AUTO, *method_names(), NATIVE),
            CALIBRATION,
        ),
    ] = AUTO,
    recipe: RecipeFlag = None,
    skip_bad: SkipBadFlag = False,
    samples: SamplesFlag = None,
    no_equalization: Annotated[
        bool,
        typer.Option(
            "--no-equalization", help="Do not equalize activations across channels.", rich_help_panel=CALIBRATION
        ),
    ] = False,
    only: OnlyFlag = None,
    shape: ShapeFlag = None,
    shard: ShardFlag = None,
    ray: RayFlag = None,
    ray_cores: RayCoresFlag = 4,
    out: OutFlag = None,
    device: DeviceFlag = Device.cpu,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Measure one scale per tensor, and write them as JSON and, for INT8, as a TensorRT calibration cache.

    \b
    Example:
      trtopt calibrate model.onnx --calib data/calib

    A later `trtopt convert` into the same directory reuses the table; elsewhere, pass it with `--calib-table`.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import calibrated, rehearsed
    from trtopt.commands.calibrate import calibrate as run
    from trtopt.commands.calibrate import calibrate_shard
    from trtopt.commands.rehearse import rehearse
    from trtopt.commands.spread import spread
    from trtopt.export.source import identify
    from trtopt.flags import lowered_only
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan
    from trtopt.shapes import parse_shapes
    from trtopt.shards.cluster import Cluster
    from trtopt.shards.shard import parse_shard
    from trtopt.types import CalibrationTable

    plan = ConvertPlan(
        source=model,
        precision=precision,
        run_dir=out or rundir.of_source(identify(str(model)), precision),
        calib=DataPlan(source=calib, recipe=recipe, skip_bad=skip_bad, samples=samples),
        method=method,
        equalization=not no_equalization,
        only=lowered_only(only or (), precision),
        shapes=parse_shapes(shape or ()),
        device=device.value,
        build=BuildPlan(),
        cache=cache(dry_run=dry_run, force=force),
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        if dry_run:
            rehearsed(rehearse(plan, lambda record: run(plan, record), emit, last="calibrate"), "text")
        if shard:
            print(calibrate_shard(plan, parse_shard(shard), emit))
            return
        table = spread(plan, Cluster(address=ray, cores=ray_cores), emit) if ray else run(plan, emit)
    assert isinstance(table, CalibrationTable)
    calibrated(table, rundir.claimed(plan.run_dir))
