"""`trtopt predict`: offline inference, one row per sample.

Touches: the output, and files beside it; prints the summary on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import (
    INPUT,
    MEASUREMENT,
    OUTPUT,
    RUN,
    ClassesFlag,
    Device,
    DeviceFlag,
    Format,
    QuietFlag,
    RayCoresFlag,
    RayFlag,
    RecipeFlag,
    SamplesFlag,
    ShardFlag,
    TextOrJsonFlag,
    VerboseFlag,
    choice,
)

_ANSWERS = ("auto", "top5", "boxes", "raw")


def predict(
    run: Annotated[
        Path, typer.Argument(help="A run directory, an engine in one, or an ONNX file.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Samples: a folder of images, .npy, .npz, .jsonl, .parquet, module:function.",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The file of the rows: .parquet, .jsonl or .npz.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ],
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    samples: SamplesFlag = None,
    answers: Annotated[
        str, choice("Columns of a row; any number may follow top. auto looks at the outputs.", _ANSWERS, OUTPUT)
    ] = "auto",
    batch: Annotated[
        int | None,
        typer.Option(
            help="Largest batch; memory may make it smaller. Default: that of the engine, or 32 (64 on CUDA).",
            min=1,
            show_default=False,
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    streams: Annotated[
        int, typer.Option(help="Batches that an engine runs at a time.", min=1, max=16, rich_help_panel=MEASUREMENT)
    ] = 2,
    yield_: Annotated[
        str | None,
        typer.Option(
            "--yield",
            metavar="LIMIT",
            help="Pause while another service needs the GPU: a utilisation (60%), or a latency (20ms@URL).",
            rich_help_panel=RUN,
        ),
    ] = None,
    shard: ShardFlag = None,
    ray: RayFlag = None,
    ray_cores: RayCoresFlag = 4,
    device: DeviceFlag = Device.cpu,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier output, and start again.", rich_help_panel=RUN)
    ] = False,
    format: TextOrJsonFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Run a network over samples, and write one row per sample; errors are rows, too.

    \b
    Example:
      trtopt predict trtopt-out/model/int8 --data photos -o predictions.parquet

    The engine runs where it can, else its typed graph in onnxruntime; the summary says which. A run that was killed is
    resumed by the same command.
    """
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import predicted
    from trtopt.commands.predict import predict as start
    from trtopt.commands.spread import spread
    from trtopt.plan import DataPlan, PredictPlan
    from trtopt.predict.pauses import parse_limit
    from trtopt.shards.cluster import Cluster
    from trtopt.shards.shard import WHOLE, parse_shard
    from trtopt.types import Predictions

    plan = PredictPlan(
        run=run,
        out=out,
        data=DataPlan(source=data, recipe=recipe, classes=classes, samples=samples),
        answers=answers,
        batch=batch,
        streams=streams,
        device=device.value,
        shard=parse_shard(shard) if shard else WHOLE,
        yield_to=parse_limit(yield_) if yield_ else None,
        force=force,
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        result = spread(plan, Cluster(address=ray, cores=ray_cores), emit) if ray else start(plan, emit)
    assert isinstance(result, Predictions)
    predicted(result, format.value)
