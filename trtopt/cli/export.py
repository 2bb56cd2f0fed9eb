"""`trtopt export`: write a framework's model as FP32 ONNX and verify its outputs.

Touches: the run directory and the ONNX file; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import (
    AllowDriftFlag,
    DtypeFlag,
    ExportTimeoutFlag,
    Format,
    FormatFlag,
    RecipeFlag,
    ShapeFlag,
    SignatureFlag,
    SkipBadFlag,
    WeightsFlag,
)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .pt2, TorchScript .pt, .keras or .h5 file, a SavedModel folder, or package.module:factory.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    shape: ShapeFlag = None,
    dtype: DtypeFlag = None,
    weights: WeightsFlag = None,
    signature: SignatureFlag = None,
    data: Annotated[
        str | None,
        typer.Option(help="Samples to verify the export on. Default: seeded random samples, as the report says."),
    ] = None,
    recipe: RecipeFlag = None,
    skip_bad: SkipBadFlag = False,
    allow_export_drift: AllowDriftFlag = False,
    export_timeout: ExportTimeoutFlag = 1800.0,
    format: FormatFlag = Format.text,
) -> None:
    """Export a network to ONNX, and compare onnxruntime's outputs with the framework's own.

    Exits 0 if they agree, 2 if they do not or on another error, 3 if the framework is not installed.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import finish
    from trtopt.commands.export import export as run
    from trtopt.plan import DataPlan, ExportOnlyPlan, ExportPlan, input_dtypes
    from trtopt.shapes import parse_shapes

    plan = ExportOnlyPlan(
        source=source,
        out=out,
        run_dir=rundir.of_export(out),
        shapes=parse_shapes(shape or ()),
        data=DataPlan(source=data, recipe=recipe, skip_bad=skip_bad) if data else None,
        export=ExportPlan(
            dtypes=input_dtypes(dtype or ()),
            weights=weights,
            signature=signature,
            timeout=export_timeout,
            allow_drift=allow_export_drift,
        ),
    )
    with Narrator() as emit:
        report = run(plan, emit)
    finish(report, format.value)
