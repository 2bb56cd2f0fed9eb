"""`trtopt compare`: the drift of candidates against the FP32 baseline, as a deployment gate.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import (
    AllowInconclusiveFlag,
    ClassesFlag,
    Device,
    DeviceFlag,
    Format,
    FormatFlag,
    GateFlag,
    KindFlag,
    LabelsFlag,
    MetricFlag,
    RecipeFlag,
    SkipBadFlag,
    joined,
)
from trtopt.cli.settings import is_typed

_OF_A_RUN = ("data", "recipe", "classes", "labels", "skip_bad", "kind", "metric", "layers", "out", "device")
"""Flags that say how something is run, or where to."""


def compare(
    context: typer.Context,
    baseline: Annotated[Path | None, typer.Argument(help="The FP32 ONNX file.", show_default=False)] = None,
    candidates: Annotated[
        list[Path] | None,
        typer.Argument(help="Run directories, engines in them, or ONNX files.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Samples to compare on, with labels where there are any.", show_default=False)
    ] = None,
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    labels: LabelsFlag = None,
    skip_bad: SkipBadFlag = False,
    gate: GateFlag = None,
    allow_inconclusive: AllowInconclusiveFlag = False,
    kind: KindFlag = None,
    metric: MetricFlag = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show the drift layer by layer, also when no gate fails.")
    ] = False,
    worst: Annotated[int, typer.Option(help="List so many of the worst samples.", min=0, max=50)] = 0,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Judge again what this run directory holds, with new gates; nothing is run."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where report.json goes. Default: trtopt-out/compare/<baseline>/<candidate>."),
    ] = None,
    device: DeviceFlag = Device.cpu,
    format: FormatFlag = Format.text,
) -> None:
    """Compare candidates with FP32 on your data, and judge them.

    Exits 0 when every gate passes (too few samples for a default one are reported only), 1 when one fails, 2 on an
    error, 4 when a gate of --gate is inconclusive.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import finish
    from trtopt.comparison import compare as run
    from trtopt.comparison import judge_again
    from trtopt.config import ComparePlan, DataPlan, JudgePlan, MeasurePlan
    from trtopt.errors import UsageError

    measure = MeasurePlan(kinds=tuple(kind or ()), metrics=tuple(metric or ()))
    if from_ is not None:
        # Settings are there for other runs, too: only what was typed is refused.
        typed = [name for name in _OF_A_RUN if is_typed(context, name)]
        if baseline or typed:
            flags = ", ".join(["models"] * bool(baseline) + [f"--{name.replace('_', '-')}" for name in typed])
            raise UsageError("--from runs nothing", why="it judges what was measured", fix=f"Leave out {flags}")
        judged = JudgePlan(
            run=from_, measure=measure, gates=joined(gate), allow_inconclusive=allow_inconclusive, worst=worst
        )
        finish(judge_again(judged), format.value)
    if baseline is None or not candidates:
        raise UsageError("nothing to compare", fix="Name the FP32 ONNX file, then a candidate or more")
    if data is None:
        raise UsageError("nothing to compare on", fix="Add --data DATA (samples that were not calibrated on)")
    plan = ComparePlan(
        baseline=baseline,
        candidates=tuple(candidates),
        run_dir=out or rundir.of_comparison(baseline, candidates),
        data=DataPlan(source=data, recipe=recipe, classes=classes, labels=labels, skip_bad=skip_bad),
        measure=measure,
        gates=joined(gate),
        allow_inconclusive=allow_inconclusive,
        layers=layers,
        worst=worst,
        device=device.value,
    )
    with Narrator() as emit:
        report = run(plan, emit)
    finish(report, format.value)
