"""The commands of `trtopt`, each from its module.

Touches: imports the module of the command that is asked for. A command imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from trtopt import __version__
from trtopt.cli.command import Command
from trtopt.cli.settings import apply

SUMMARIES = {
    "convert": "Turn a network into an engine, and compare it with FP32.",
    "tune": "Find the cheapest mixed precision that passes the gates.",
    "sensitivity": "Measure what quantizing each group of nodes costs in accuracy.",
    "export": "Write a framework's network as ONNX, and verify it.",
    "calibrate": "Measure INT8 or FP8 scales on samples.",
    "adopt": "Make an engine that trtexec built the engine of a run.",
    "compare": "Gate candidates by their drift from FP32 on your data.",
    "bench": "Compare the speed of targets, or find the largest batch.",
    "predict": "Write one row per sample, in batches, resumed after a kill.",
    "merge": "Make one result from the partial results of --shard.",
    "package": "Write a model repository for NVIDIA's Triton.",
    "fleet": "Plan several models on one or more GPUs.",
    "report": "Print the report of a run again, in any format.",
    "inspect": "Show a model's contents, and each node's precision.",
    "doctor": "Show what this machine can build and run.",
    "watch": "Show the state of the GPUs, live or for Prometheus.",
    "init": "Write a trtopt.toml for a model, explained line by line.",
    "config": "Show every setting and the origin of its value.",
    "clean": "Remove what runs wrote, as their manifests list it.",
}
"""Each command's line in `trtopt --help`, in that order. The command is the function NAME of `trtopt.cli.NAME`."""


class _Commands(MutableMapping[str, Any]):
    """The commands by name; each is made when it is looked up.

    To import the flags of all commands takes longer than a cached run of one of them.
    """

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _command(name, SUMMARIES[name])
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in SUMMARIES

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()


def _command(name: str, summary: str) -> Any:
    """Return a command, made by typer from the function of its module."""
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    function = getattr(importlib.import_module(f"trtopt.cli.{name}"), name)
    alone.command(name, cls=Command, short_help=summary)(function)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="trtopt",
    cls=_Group,
    help="Turn a trained network into a TensorRT engine that is safe to deploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's panels truncate words longer than a column
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


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
