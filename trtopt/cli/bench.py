"""`trtopt bench`: compare the speed of targets over batch sizes; with `--max-batch`, find the largest batch that fits.

Touches: the run directory; prints the report on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtopt.cli.options import (
    COMPARISON,
    INPUT,
    MEASUREMENT,
    OUTPUT,
    RUN,
    AllowInconclusiveFlag,
    Device,
    Format,
    FormatFlag,
    QuietFlag,
    RayCoresFlag,
    RayFlag,
    RecipeFlag,
    SamplesFlag,
    ShapeFlag,
    SkipBadFlag,
    VerboseFlag,
    joined,
    size,
)

if TYPE_CHECKING:
    from trtopt.plan import MaxBatchPlan, SpeedPlan
    from trtopt.rundir import DefaultDir


def bench(
    targets: Annotated[
        list[Path] | None,
        typer.Argument(
            help="ONNX files, engines in run directories, or run directories: their engine if it runs here, else "
            "their graph in onnxruntime. With --server: the name of the served model.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Batch sizes: 1,4,16. Default: 1,8,16,32,64, or the model's fixed size.", rich_help_panel=MEASUREMENT
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="Time per target and batch size; the reported noise tells whether it was enough.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = 2.0,
    data: Annotated[
        str | None,
        typer.Option(help="Samples to run on. Default: random samples.", show_default=False, rich_help_panel=INPUT),
    ] = None,
    recipe: RecipeFlag = None,
    skip_bad: SkipBadFlag = False,
    samples: SamplesFlag = None,
    shape: ShapeFlag = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Thresholds for the last target, at every batch size or at one: latency_p99=5ms,throughput@8=1000. "
            "speedup=1.5x is relative to the first target. May be repeated.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    allow_inconclusive: AllowInconclusiveFlag = False,
    max_batch: Annotated[
        bool,
        typer.Option(
            "--max-batch",
            help="Find the largest batch of one target that fits, instead of a sweep.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = False,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="For --max-batch: limit of memory, such as 8GiB. Default: all free memory.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    latency_limit: Annotated[
        str | None,
        typer.Option(
            help="For --max-batch: limit of the median time per batch, such as 20ms. For --server: of the p99.",
            show_default=False,
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send requests to a Triton server instead: grpc://HOST:8001.",
            show_default=False,
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    rate: Annotated[
        str,
        typer.Option(help="For --server: requests per second, as in 10,50,100.", rich_help_panel=MEASUREMENT),
    ] = "10",
    poisson: Annotated[
        bool,
        typer.Option(
            "--poisson",
            help="For --server: send at random times, as many independent clients do, instead of in even steps.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            help="For --server: seconds after which a request counts as failed.",
            min=0.001,
            rich_help_panel=MEASUREMENT,
        ),
    ] = 10.0,
    device: Annotated[
        Device,
        typer.Option(
            help="Where to run. auto: on a GPU if one works. On the CPU, gates are decided only with cpu.",
            rich_help_panel=RUN,
        ),
    ] = Device.auto,
    tf32: Annotated[
        bool,
        typer.Option("--tf32", help="On a GPU, let onnxruntime compute FP32 products in TF32.", rich_help_panel=RUN),
    ] = False,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs", help="Let onnxruntime capture CUDA graphs, as engines always do.", rich_help_panel=RUN
        ),
    ] = False,
    ray: RayFlag = None,
    ray_cores: RayCoresFlag = 4,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Directory of report.json and benchmark.json. Default: trtopt-out/bench/<targets>.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Time targets side by side over batch sizes, with the noise of each measurement.

    \b
    Example:
      trtopt bench model.onnx trtopt-out/model/int8 --batch 1,8,64 --gate latency_p99@8=5ms

    Exits 0 if every gate passes (or there are none), 1 if one fails, 4 if one is inconclusive (as on a CPU without
    --device cpu), 3 if memory is exhausted or the server does not answer, 130 on Ctrl-C; results measured until then
    are kept and shown.
    """
    from dataclasses import replace

    from trtopt import rundir
    from trtopt.bench.gate import parse_gates
    from trtopt.cli import served
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish
    from trtopt.commands.bench import bench as run
    from trtopt.commands.load import LoadPlan
    from trtopt.commands.max_batch import max_batch as search_batch
    from trtopt.commands.spread import spread_bench
    from trtopt.errors import UsageError
    from trtopt.plan import BenchPlan, DataPlan, SpeedPlan
    from trtopt.shapes import parse_shapes
    from trtopt.shards.cluster import Cluster

    targets = targets or []
    samples_of = DataPlan(source=data, recipe=recipe, skip_bad=skip_bad, samples=samples) if data else None
    if server is not None:
        served.finish(
            LoadPlan(
                server=server,
                model=served.named(targets),
                rates=served.rates(rate),
                seconds=_positive(seconds),
                timeout=timeout,
                data=samples_of,
                shapes=parse_shapes(shape or ()),
                latency_limit=_milliseconds(latency_limit),
                gates=parse_gates(joined(gate)),
                poisson=poisson,
            ),
            format=format.value,
            quiet=quiet,
            verbose=verbose,
            allow_inconclusive=allow_inconclusive,
        )
    if not targets:
        raise UsageError("nothing to measure", fix="Name a model or a run, or a served model with --server URL")
    speed = SpeedPlan(device=device.value, shapes=parse_shapes(shape or ()), tf32=tf32, graphs=cuda_graphs)
    run_dir = out or rundir.of_bench(targets)
    if max_batch:
        for flag, value in (("--batch", batch), ("--gate", gate), ("--data", data)):
            if value:
                raise UsageError(
                    f"{flag} cannot be combined with --max-batch",
                    why="it applies to a sweep",
                    fix="Leave out one of them",
                )
        search = _max_batch(targets, run_dir, speed, (memory_limit, latency_limit))
        with Narrator(quiet=quiet, verbose=verbose) as emit:
            report = search_batch(replace(search, allow_inconclusive=allow_inconclusive), emit)
        finish(report, Printed(format=format.value, told=emit.told))
    if memory_limit or latency_limit:
        raise UsageError("--memory-limit and --latency-limit need --max-batch", fix="Add it, or use --gate instead")
    plan = BenchPlan(
        targets=tuple(targets),
        run_dir=run_dir,
        batches=_batches(batch),
        seconds=_positive(seconds),
        data=samples_of,
        gates=parse_gates(joined(gate)),
        allow_inconclusive=allow_inconclusive,
        speed=speed,
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        cluster = Cluster(address=ray or "", cores=ray_cores)
        report, stopped = (spread_bench(plan, cluster, emit), None) if ray else run(plan, emit)
    finish(report, Printed(format=format.value, told=emit.told), stopped)


def _batches(text: str | None) -> tuple[int, ...]:
    """Parse batch sizes and sort them, so that memory grows from one to the next."""
    import re

    from trtopt.errors import UsageError

    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,6}", part) for part in parts):
        raise UsageError(f"invalid --batch {text}", fix="Write positive integers: --batch 1,4,16")
    return tuple(sorted({int(part) for part in parts}))


def _positive(seconds: float) -> float:
    import math

    from trtopt.errors import UsageError

    if not 0 < seconds < math.inf:
        raise UsageError(
            f"invalid --seconds {seconds:g}", why="it must be positive and finite", fix="Write --seconds 2"
        )
    return seconds


def _milliseconds(limit: str | None) -> float:
    """Parse `--latency-limit`; infinite without it."""
    import math

    from trtopt.bench.units import MILLISECONDS, quantity

    return quantity(limit, MILLISECONDS, "--latency-limit", "--latency-limit 20ms") if limit else math.inf


def _max_batch(
    targets: list[Path], run_dir: Path | DefaultDir, speed: SpeedPlan, limits: tuple[str | None, str | None]
) -> MaxBatchPlan:
    from trtopt.errors import UsageError
    from trtopt.plan import MaxBatchPlan

    if len(targets) != 1:
        raise UsageError(f"--max-batch takes one target, but {len(targets)} are given", fix="Run it once per target")
    memory, latency = limits
    return MaxBatchPlan(
        target=targets[0],
        run_dir=run_dir,
        memory_limit=size(memory, "--memory-limit") or 0,
        latency_limit=_milliseconds(latency),
        speed=speed,
    )
