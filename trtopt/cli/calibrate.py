"""`trtopt calibrate`: write a calibration table for an ONNX file, and nothing else.

Touches: the run directory; prints the table's summary on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.calibrate import method_names
from trtopt.cli.options import Device, DeviceFlag, OutFlag, RecipeFlag, SkipBadFlag


def calibrate(
    model: Annotated[Path, typer.Argument(help="The trained network, as FP32 ONNX.", show_default=False)],
    calib: Annotated[
        str,
        typer.Option(help="Samples: a folder of images, .npy, .npz, .jsonl, .parquet, module:function."),
    ],
    precision: Annotated[str, typer.Option("--precision", "-p", help="Precision of the table: int8 or fp8.")] = "int8",
    method: Annotated[str, typer.Option(help=f"auto picks the best of {', '.join(method_names())}.")] = "auto",
    recipe: RecipeFlag = None,
    skip_bad: SkipBadFlag = False,
    no_equalization: Annotated[
        bool, typer.Option("--no-equalization", help="Do not equalize activations across channels.")
    ] = False,
    shape: Annotated[
        list[str] | None, typer.Option(help="Shapes of an input with dynamic dimensions, as in trtopt convert.")
    ] = None,
    out: OutFlag = None,
    device: DeviceFlag = Device.cpu,
) -> None:
    """Measure one scale per tensor, and write them as JSON and, for INT8, as a TensorRT calibration cache.

    A later `trtopt convert` into the same directory reuses the table; elsewhere, pass it with `--calib-table`.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.commands.calibrate import calibrate as run
    from trtopt.export.source import identify
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan
    from trtopt.shapes import parse_shapes
    from trtopt.stages.tables import of_equalized

    plan = ConvertPlan(
        source=model,
        precision=precision,
        run_dir=out or rundir.of_source(identify(str(model)), precision),
        calib=DataPlan(source=calib, recipe=recipe, skip_bad=skip_bad),
        method=method,
        equalization=not no_equalization,
        shapes=parse_shapes(shape or ()),
        device=device.value,
        build=BuildPlan(),
    )
    with Narrator() as emit:
        table = run(plan, emit)
    run_dir = rundir.claimed(plan.run_dir)
    print(f"{len(table.scales)} scales by {table.method} over {table.samples} samples")
    for name in ("calibration.json", "calibration.cache"):
        if (run_dir / name).exists():
            print(run_dir / name)
    if of_equalized(table):
        print(
            f"The scales belong to {run_dir / 'equalized.onnx'}: use the JSON with --calib-table and the same --calib."
        )
