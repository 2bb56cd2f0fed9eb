"""`trtopt export`: write a framework's model as FP32 ONNX and verify its outputs.

Touches: the run directory and the ONNX file; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import (
    INPUT,
    OUTPUT,
    AllowDriftFlag,
    DryRunFlag,
    DtypeFlag,
    ExportTimeoutFlag,
    ForceFlag,
    Format,
    FormatFlag,
    QuietFlag,
    RecipeFlag,
    SamplesFlag,
    ShapeFlag,
    SignatureFlag,
    SkipBadFlag,
    VerboseFlag,
    WeightsFlag,
    cache,
)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .pt2, TorchScript .pt, .keras or .h5 file, a SavedModel folder, or package.module:factory.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False, rich_help_panel=OUTPUT),
    ],
    shape: ShapeFlag = None,
    dtype: DtypeFlag = None,
    weights: WeightsFlag = None,
    signature: SignatureFlag = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Samples to verify the export on. Default: seeded random samples, as the report says.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    recipe: RecipeFlag = None,
    skip_bad: SkipBadFlag = False,
    samples: SamplesFlag = None,
    allow_export_drift: AllowDriftFlag = False,
    export_timeout: ExportTimeoutFlag = 1800.0,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Export a network to ONNX, and compare onnxruntime's outputs with the framework's own.

    \b
    Example:
      trtopt export nets.vision:resnet -o resnet.onnx --shape image=1x3x224x224:8x3x224x224:32x3x224x224

    Exits 0 if they agree, 2 if they do not or on another error, 3 if the framework is not installed.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish, rehearsed
    from trtopt.commands.export import export as run
    from trtopt.commands.rehearse import rehearse
    from trtopt.flags import input_dtypes
    from trtopt.plan import DataPlan, ExportOnlyPlan, ExportPlan
    from trtopt.shapes import parse_shapes

    plan = ExportOnlyPlan(
        source=source,
        out=out,
        run_dir=rundir.of_export(out),
        shapes=parse_shapes(shape or ()),
        data=DataPlan(source=data, recipe=recipe, skip_bad=skip_bad, samples=samples) if data else None,
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
            rehearsed(rehearse(plan, lambda record: run(plan, record), emit), format.value)
        report = run(plan, emit)
    finish(report, Printed(format=format.value, told=emit.told))
