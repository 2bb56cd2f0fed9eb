"""`trtopt fleet`: plan several models on one or more GPUs, and write what runs them.

Touches: reads the runs; writes the folder of the fleet; prints on stdout.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtopt.cli.options import (
    OUTPUT,
    RUN,
    TENSORRT,
    Format,
    FormatFlag,
    QuietFlag,
    VerboseFlag,
)
from trtopt.cli.package import Platform

if TYPE_CHECKING:
    from trtopt.commands.fleet import Planned


class Strategy(str, Enum):
    """How instances are chosen."""

    fixed = "fixed"
    dynamic = "dynamic"
    priority = "priority"


def fleet(
    models: Annotated[
        Path, typer.Argument(help="TOML file with the models, their rates and limits.", show_default=False)
    ],
    gpu: Annotated[
        list[str],
        typer.Option(
            help="GPUs: a name such as L4, L4:2 for two, mine=8GiB, H100-80GB/3g.40gb:2 for slices of one; or auto, "
            "those of this machine.",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ],
    strategy: Annotated[
        Strategy,
        typer.Option(
            help="fixed: the instances and memory that the file states. dynamic: instances follow the rates. priority: "
            "the latency of important models first.",
            rich_help_panel=RUN,
        ),
    ] = Strategy.dynamic,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write, or to update.", rich_help_panel=OUTPUT)
    ] = Path("trtopt-out/fleet"),
    previous: Annotated[
        Path | None,
        typer.Option(
            help="Plan that runs now, from which as little as possible moves. Default: plan.json in the folder.",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            help="Release of the server's image, or IMAGE=VERSION with the version of its TensorRT.",
            rich_help_panel=TENSORRT,
        ),
    ] = "26.03",
    platform: Annotated[
        Platform, typer.Option(help="Serve the engines, or the graphs in onnxruntime.", rich_help_panel=TENSORRT)
    ] = Platform.tensorrt,
    mps: Annotated[
        bool,
        typer.Option(
            "--mps",
            help="Let NVIDIA's MPS, whose daemon must run on the host, limit each server to its planned memory.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Load the models in a real server, without a GPU, and compare its answers with trtopt's. Nothing is "
            "written if they differ.",
            rich_help_panel=RUN,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and write nothing.", rich_help_panel=RUN)
    ] = False,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Plan several models on one or more GPUs: instances, batches, memory, and the latency to expect.

    \b
    Example:
      trtopt fleet models.toml --gpu L4:2 -o fleet

    Writes the repository of Triton, compose.yaml with Prometheus and Grafana, kubernetes.yaml, a script that offers the
    planned load, and plan.json, which the next run starts from. Exits 1, and writes nothing, if a model does not
    fit, is not served at its rate, or is expected to break its limit.
    """
    import json

    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish
    from trtopt.codec import encode
    from trtopt.commands.fleet import FleetPlan, report
    from trtopt.commands.fleet import fleet as run
    from trtopt.errors import EXIT_GATE_FAILED
    from trtopt.fleet import gpus
    from trtopt.serve.folders import Options
    from trtopt.serve.images import image as known_image

    plan = FleetPlan(
        models=models,
        gpus=gpus.parse(gpu),
        strategy=strategy.value,
        options=Options(image=known_image(image), platform=platform.value),
        out=None if dry_run else out,
        previous=previous,
        mps=mps,
        verify=verify,
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        planned = run(plan, emit)
    if format.value == "json":
        print(json.dumps({"schema_version": 1, **encode(planned)}, indent=1, allow_nan=False))
    elif format.value == "text":
        print("\n".join(_lines(planned)))
    else:
        finish(report(planned), Printed(format=format.value, told=emit.told))
    if planned.shortages:
        raise typer.Exit(EXIT_GATE_FAILED)


def _lines(planned: Planned) -> list[str]:
    """Return the tables, and what to do next. What must be built comes first, as from `trtopt package`."""
    import shlex

    from trtopt.fleet import table
    from trtopt.report.page.words import aligned, plain
    from trtopt.serve.folders import to_build
    from trtopt.serve.verify import gates

    lines = [to_build(script, why) for script, why in planned.to_build]
    lines += [*aligned(table.gpus(planned.plan), left=(0, 1, 5)), "", *aligned(table.models(planned.plan)), ""]
    lines += [f"verified {gate.output}: {gate.reason}" for gate in gates(planned.verified)]
    lines += planned.shortages
    if planned.shortages:
        return [plain(line) for line in [*lines, "FAIL: nothing was written"]]
    if planned.out is not None:
        compose = f"docker compose -f {shlex.quote(str(planned.out / 'compose.yaml'))}"
        lines.append(f"{planned.out}: start it with {compose} up -d")
        if planned.restart:
            lines.append(f"changed: {compose} restart {' '.join(planned.restart)}")
    return [plain(line) for line in [*lines, "PASS"]]
