"""`trtopt tune`: find the cheapest mixed precision that passes the gates.

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
    RUN,
    TENSORRT,
    AllowDriftFlag,
    AllowInconclusiveFlag,
    ClassesFlag,
    Device,
    DeviceFlag,
    DryRunFlag,
    DtypeFlag,
    ExportTimeoutFlag,
    ForceFlag,
    Format,
    FormatFlag,
    GateFlag,
    KeepFlag,
    KindFlag,
    LabelsFlag,
    MetricFlag,
    OnlyFlag,
    OutFlag,
    QuietFlag,
    RecipeFlag,
    RestFlag,
    SamplesFlag,
    ShapeFlag,
    SignatureFlag,
    SkipBadFlag,
    VerboseFlag,
    WeightsFlag,
    cache,
    choice,
    joined,
    size,
)
from trtopt.engine import DEFAULT, backends

SPEEDS = ("engine", "macs", "bytes")


def tune(
    model: Annotated[Path, typer.Argument(help="The trained network, as for convert.", show_default=False)],
    calib: Annotated[
        str,
        typer.Option(
            help="Samples to calibrate on: a folder of images, .npy, .npz, .jsonl, .parquet, module:function.",
            rich_help_panel=INPUT,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Samples with labels if available: every other one to search on, the rest for the verdict.",
            rich_help_panel=INPUT,
        ),
    ],
    precision: Annotated[
        str, choice("Precision of what is quantized.", ("int8", "fp8"), PRECISION, "--precision", "-p")
    ] = "int8",
    rest: RestFlag = "fp16",
    keep: KeepFlag = None,
    only: OnlyFlag = None,
    speed: Annotated[
        str,
        choice("What to minimize: multiplications, bytes of traffic, or time on this GPU.", SPEEDS, RUN),
    ] = "macs",
    budget: Annotated[
        str,
        typer.Option(help="Limit of the search: 30min, 2h or 40candidates. Default: none.", rich_help_panel=RUN),
    ] = "",
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    labels: LabelsFlag = None,
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
    gate: GateFlag = None,
    allow_inconclusive: AllowInconclusiveFlag = False,
    kind: KindFlag = None,
    metric: MetricFlag = None,
    out: OutFlag = None,
    backend: Annotated[
        str,
        choice("What is built. The result of onnxruntime is the typed ONNX itself.", backends(), TENSORRT),
    ] = DEFAULT,
    workspace: Annotated[
        str | None, typer.Option(help="Builder workspace limit, such as 4GiB.", rich_help_panel=TENSORRT)
    ] = None,
    tactic_sources: Annotated[
        str,
        typer.Option(
            help="Libraries that TensorRT's builder may use, as for trtexec: -CUDNN,+CUBLAS.", rich_help_panel=TENSORRT
        ),
    ] = "",
    device: DeviceFlag = Device.cpu,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Find the cheapest mixed precision that passes the gates, and convert with it.

    \b
    Example:
      trtopt tune model.onnx --calib data/calib --data data/eval --gate top1=1%

    A run that is stopped resumes from its journal. Exits as `trtopt convert` does.
    """
    from trtopt import rundir
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish, rehearsed
    from trtopt.commands.rehearse import rehearse
    from trtopt.commands.tune import tune as run
    from trtopt.compare.gates import parse_gates
    from trtopt.export.source import identify
    from trtopt.flags import input_dtypes, keeps, lowered_only, output_kinds
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan, ExportPlan, MeasurePlan, TunePlan
    from trtopt.shapes import parse_shapes
    from trtopt.tune.budget import parse_budget

    plan = ConvertPlan(
        source=model,
        precision=precision,
        run_dir=out or rundir.of_source(identify(str(model)), "tuned"),
        rest=rest,
        calib=DataPlan(source=calib, recipe=recipe, skip_bad=skip_bad, samples=samples),
        method=method,
        data=DataPlan(source=data, recipe=recipe, classes=classes, labels=labels, skip_bad=skip_bad, samples=samples),
        equalization=not no_equalization,
        bias_correction=not no_bias_correction,
        keep=keeps(keep or (), precision, rest),
        only=lowered_only(only or (), precision),
        measure=MeasurePlan(kinds=output_kinds(kind or ()), metrics=tuple(metric or ())),
        gates=parse_gates(joined(gate)),
        allow_inconclusive=allow_inconclusive,
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
        build=BuildPlan(backend=backend, workspace_bytes=size(workspace, "--workspace"), tactic_sources=tactic_sources),
        if_faster=speed == "engine",
        tuning=TunePlan(speed=speed, budget=parse_budget(budget)),
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        if dry_run:
            rehearsed(rehearse(plan, lambda record: run(plan, record), emit), format.value)
        report, unable = run(plan, emit)
    finish(report, Printed(format=format.value, told=emit.told), unable)
