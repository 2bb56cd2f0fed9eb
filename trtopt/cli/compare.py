"""`trtopt compare`: measure the drift of candidates from the FP32 baseline, and gate their deployment.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import (
    COMPARISON,
    INPUT,
    OUTPUT,
    AllowInconclusiveFlag,
    ClassesFlag,
    Device,
    DeviceFlag,
    DryRunFlag,
    ForceFlag,
    Format,
    FormatFlag,
    GateFlag,
    KindFlag,
    LabelsFlag,
    MetricFlag,
    QuietFlag,
    RayCoresFlag,
    RayFlag,
    RecipeFlag,
    SamplesFlag,
    ShardFlag,
    SkipBadFlag,
    VerboseFlag,
    cache,
    joined,
)
from trtopt.cli.settings import is_typed

_OF_A_RUN = (
    *("data", "recipe", "classes", "labels", "skip_bad", "samples", "kind", "metric", "layers", "out", "device"),
    *("dry_run", "force", "shard", "ray"),
)
"""Flags that control a run or its output, and do not apply to stored results."""


def compare(
    context: typer.Context,
    baseline: Annotated[Path | None, typer.Argument(help="The FP32 ONNX file.", show_default=False)] = None,
    candidates: Annotated[
        list[Path] | None,
        typer.Argument(help="Run directories, engines in them, or ONNX files.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Samples to compare on, with labels if available.", show_default=False, rich_help_panel=INPUT
        ),
    ] = None,
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    labels: LabelsFlag = None,
    skip_bad: SkipBadFlag = False,
    samples: SamplesFlag = None,
    gate: GateFlag = None,
    allow_inconclusive: AllowInconclusiveFlag = False,
    kind: KindFlag = None,
    metric: MetricFlag = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="Show the drift layer by layer even if no gate fails.", rich_help_panel=COMPARISON
        ),
    ] = False,
    worst: Annotated[
        int, typer.Option(help="Number of worst samples to list.", min=0, max=50, rich_help_panel=OUTPUT)
    ] = 0,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Apply new gates to the results in this run directory, without running the models.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Directory of report.json. Default: trtopt-out/compare/<baseline>/<candidate>.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    shard: ShardFlag = None,
    ray: RayFlag = None,
    ray_cores: RayCoresFlag = 4,
    device: DeviceFlag = Device.cpu,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Compare candidates with FP32 on your data, and gate them.

    \b
    Example:
      trtopt compare model.onnx trtopt-out/model/int8 --data data/eval --gate top1=0.5%

    Exits 0 if every gate passes (inconclusive default gates are only reported), 1 if one fails, 2 on an error, 4 if a
    gate of --gate is inconclusive.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish, rehearsed
    from trtopt.commands.compare import compare as run
    from trtopt.commands.compare import compare_shard
    from trtopt.commands.judge import judge_again
    from trtopt.commands.rehearse import rehearse
    from trtopt.commands.spread import spread
    from trtopt.compare.gates import parse_gates
    from trtopt.errors import UsageError
    from trtopt.flags import output_kinds
    from trtopt.plan import ComparePlan, DataPlan, JudgePlan, MeasurePlan
    from trtopt.shards.cluster import Cluster
    from trtopt.shards.shard import parse_shard
    from trtopt.types import Report

    measure = MeasurePlan(kinds=output_kinds(kind or ()), metrics=tuple(metric or ()))
    if from_ is not None:
        # Settings also serve other runs, so only flags that were typed are rejected.
        typed = [name for name in _OF_A_RUN if is_typed(context, name)]
        if baseline or typed:
            flags = ", ".join(["models"] * bool(baseline) + [f"--{name.replace('_', '-')}" for name in typed])
            raise UsageError("--from runs no model", why="it applies gates to stored results", fix=f"Leave out {flags}")
        judged = JudgePlan(
            run=from_,
            measure=measure,
            gates=parse_gates(joined(gate)),
            allow_inconclusive=allow_inconclusive,
            worst=worst,
        )
        finish(judge_again(judged), Printed(format=format.value))
    if baseline is None or not candidates:
        raise UsageError("nothing to compare", fix="Give the FP32 ONNX file, then one or more candidates")
    if data is None:
        raise UsageError("no data to compare on", fix="Add --data DATA (samples that were not used for calibration)")
    plan = ComparePlan(
        baseline=baseline,
        candidates=tuple(candidates),
        run_dir=out or rundir.of_comparison(baseline, candidates),
        data=DataPlan(source=data, recipe=recipe, classes=classes, labels=labels, skip_bad=skip_bad, samples=samples),
        measure=measure,
        gates=parse_gates(joined(gate)),
        allow_inconclusive=allow_inconclusive,
        layers=layers,
        worst=worst,
        device=device.value,
        cache=cache(dry_run=dry_run, force=force),
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        if dry_run:
            rehearsed(rehearse(plan, lambda record: run(plan, record), emit), format.value)
        if shard:
            print(compare_shard(plan, parse_shard(shard), emit))
            return
        report = spread(plan, Cluster(address=ray, cores=ray_cores), emit) if ray else run(plan, emit)
    assert isinstance(report, Report)
    finish(report, Printed(format=format.value, told=emit.told))
