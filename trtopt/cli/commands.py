"""The commands of `trtopt`, each registered from its module.

Touches: nothing itself. It imports no heavy package: a command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated

import typer

from trtopt import __version__
from trtopt.cli.bench import bench
from trtopt.cli.calibrate import calibrate
from trtopt.cli.clean import clean
from trtopt.cli.command import Command
from trtopt.cli.compare import compare
from trtopt.cli.config import config
from trtopt.cli.convert import convert
from trtopt.cli.doctor import doctor
from trtopt.cli.export import export
from trtopt.cli.fleet import fleet
from trtopt.cli.init import init
from trtopt.cli.inspect import inspect
from trtopt.cli.merge import merge
from trtopt.cli.package import package
from trtopt.cli.predict import predict
from trtopt.cli.report import report
from trtopt.cli.sensitivity import sensitivity
from trtopt.cli.settings import apply
from trtopt.cli.tune import tune
from trtopt.cli.watch import watch

app = typer.Typer(
    name="trtopt",
    help="Turn a trained network into a TensorRT engine that is safe to deploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's panels truncate words longer than a column
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
register = partial(app.command, cls=Command)
register(short_help="Turn a network into an engine, and compare it with FP32.")(convert)
register(short_help="Find the cheapest mixed precision that passes the gates.")(tune)
register(short_help="Measure what quantizing each group of nodes costs in accuracy.")(sensitivity)
register(short_help="Write a framework's network as ONNX, and verify it.")(export)
register(short_help="Measure INT8 or FP8 scales on samples.")(calibrate)
register(short_help="Gate candidates by their drift from FP32 on your data.")(compare)
register(short_help="Compare the speed of targets, or find the largest batch.")(bench)
register(short_help="Write one row per sample, in batches, resumed after a kill.")(predict)
register(short_help="Make one result from the partial results of --shard.")(merge)
register(short_help="Write a model repository for NVIDIA's Triton.")(package)
register(short_help="Plan several models on one or more GPUs.")(fleet)
register(short_help="Print the report of a run again, in any format.")(report)
register(short_help="Show a model's contents, and each node's precision.")(inspect)
register(short_help="Show what this machine can build and run.")(doctor)
register(short_help="Show the state of the GPUs, live or for Prometheus.")(watch)
register(short_help="Write a trtopt.toml for a model, explained line by line.")(init)
register(short_help="Show every setting and the origin of its value.")(config)
register(short_help="Remove what runs wrote, as their manifests list it.")(clean)


def _version(value: bool) -> None:
    if value:
        print(f"trtopt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if not {*context.help_option_names} & {*sys.argv}:  # help must work even if the file is invalid
        apply(context, os.environ)
