"""`trtopt compare`: the drift of a candidate against the FP32 baseline, as a deployment gate.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import Device, DeviceFlag, Format, FormatFlag, GateFlag, RecipeFlag, SkipBadFlag


def compare(
    baseline: Annotated[Path, typer.Argument(help="The FP32 ONNX file.", show_default=False)],
    candidate: Annotated[
        Path, typer.Argument(help="A run directory, an engine in one, or an ONNX file.", show_default=False)
    ],
    data: Annotated[
        str, typer.Option(help="Samples to compare on, with labels where there are any.", show_default=False)
    ],
    recipe: RecipeFlag = None,
    skip_bad: SkipBadFlag = False,
    gate: GateFlag = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where report.json goes. Default: trtopt-out/compare/<baseline>/<candidate>."),
    ] = None,
    device: DeviceFlag = Device.cpu,
    format: FormatFlag = Format.text,
) -> None:
    """Compare a candidate with FP32 on your data: exits 0 when every gate holds, 1 when one fails."""
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import finish
    from trtopt.config import ComparePlan, DataPlan
    from trtopt.pipeline import compare as run

    plan = ComparePlan(
        baseline=baseline,
        candidate=candidate,
        run_dir=out or Path("trtopt-out") / "compare" / baseline.stem / candidate.name,
        data=DataPlan(source=data, recipe=recipe, skip_bad=skip_bad),
        gates=gate,
        device=device.value,
    )
    with Narrator() as emit:
        report = run(plan, emit)
    finish(report, format.value)
