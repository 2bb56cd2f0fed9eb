"""`trtopt package`: write a model repository for NVIDIA's Triton Inference Server.

Touches: reads runs; writes the repository; prints on stdout.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtopt.cli.options import (
    INPUT,
    MEASUREMENT,
    OUTPUT,
    RUN,
    TENSORRT,
    ClassesFlag,
    Format,
    FormatFlag,
    QuietFlag,
    RecipeFlag,
    ShapeFlag,
    VerboseFlag,
)

if TYPE_CHECKING:
    from trtopt.commands.package import Packaged


class Platform(str, Enum):
    """Runtime of the model in the server."""

    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"


class EngineChoice(str, Enum):
    """Choice between an engine that must be there, and one that may be built in the image."""

    auto = "auto"
    only = "only"


def package(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or ONNX files.", show_default=False)],
    triton: Annotated[
        Path,
        typer.Option(
            "--triton", help="The model repository, new or existing.", show_default=False, rich_help_panel=OUTPUT
        ),
    ],
    image: Annotated[
        str,
        typer.Option(
            help="Release of the server's image, or IMAGE=VERSION with the version of its TensorRT.",
            rich_help_panel=TENSORRT,
        ),
    ] = "26.03",
    engine: Annotated[
        EngineChoice,
        typer.Option(
            help="auto: if the image does not load the engine, package the graph and a script that builds it there. "
            "only: refuse.",
            rich_help_panel=TENSORRT,
        ),
    ] = EngineChoice.auto,
    platform: Annotated[
        Platform, typer.Option(help="Serve the engine, or the graph in onnxruntime.", rich_help_panel=TENSORRT)
    ] = Platform.tensorrt,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model. With several runs: one model, with an engine for each GPU. Default: one model per "
            "run, named after it.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    shape: ShapeFlag = None,
    latency_limit: Annotated[
        str | None,
        typer.Option(
            help="Limit of the time to an answer, such as 20ms: sets the largest batch and the delay, from the bench "
            "table of the run.",
            show_default=False,
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble", help="Add an ensemble from encoded images to outputs; needs --recipe.", rich_help_panel=INPUT
        ),
    ] = False,
    recipe: RecipeFlag = None,
    classes: ClassesFlag = None,
    canary: Annotated[
        bool, typer.Option("--canary", help="Add the FP32 graph as a second model.", rich_help_panel=OUTPUT)
    ] = False,
    priorities: Annotated[
        int,
        typer.Option(
            help="Number of priority levels; requests of level 1 go first. 0: none.",
            min=0,
            max=100,
            rich_help_panel=OUTPUT,
        ),
    ] = 0,
    response_cache: Annotated[
        bool,
        typer.Option(
            "--response-cache", help="Let the server keep answers, for equal requests.", rich_help_panel=OUTPUT
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
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server.

    \b
    Example:
      trtopt package trtopt-out/model/int8 --triton models --latency-limit 20ms --verify

    Exits 0 also if the engine must be built in the image, which the first line says. Exits 2 if a run or a flag cannot
    be used, 3 if tritonclient is missing, or, with --engine only, if the image does not load the engine.
    """
    import json
    import math

    from trtopt.bench.units import MILLISECONDS, quantity
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, finish
    from trtopt.codec import encode
    from trtopt.commands.package import PackagePlan, report
    from trtopt.commands.package import package as run
    from trtopt.data import load_recipe, read_classes
    from trtopt.serve.folders import Options
    from trtopt.serve.images import image as known_image
    from trtopt.shapes import parse_shapes

    example = "--latency-limit 20ms"
    options = Options(
        image=known_image(image),
        platform=platform.value,
        engine_only=engine is EngineChoice.only,
        latency_limit=quantity(latency_limit, MILLISECONDS, "--latency-limit", example) if latency_limit else math.inf,
        ensemble=ensemble,
        recipe=load_recipe(recipe) if recipe else None,
        classes=read_classes(classes) if classes else None,
        canary=canary,
        priorities=priorities,
        cache=response_cache,
    )
    plan = PackagePlan(
        runs=tuple(runs),
        repository=triton,
        options=options,
        name=name or "",
        shapes=parse_shapes(shape or ()),
        verify=verify,
    )
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        packaged = run(plan, emit)
    if format is Format.json:
        print(json.dumps({"schema_version": 1, **encode(packaged)}, indent=1))
    elif format is Format.text:
        print("\n".join(_lines(packaged)))
    else:
        finish(report(packaged), Printed(format=format.value, told=emit.told))


def _lines(packaged: Packaged) -> list[str]:
    """Return the result in text. The first line says whether a server can load it."""
    from trtopt.report.page.words import plain
    from trtopt.serve.folders import to_build
    from trtopt.serve.verify import gates

    lines = [to_build(script, why) for script, why in packaged.to_build]
    lines += [f"{packaged.repository}: {', '.join(packaged.models)}"]
    lines += [f"verified {gate.output}: {gate.reason}" for gate in gates(packaged.verified)]
    return [plain(line) for line in [*lines, f"serve: {packaged.serve}"]]
