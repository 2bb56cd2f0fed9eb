"""Flags that several commands share, declared once.

Touches: nothing.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Format(str, Enum):
    """How the result is printed on stdout."""

    text = "text"
    json = "json"
    junit = "junit"
    markdown = "markdown"
    github = "github"


class Device(str, Enum):
    """Where onnxruntime runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


RecipeFlag = Annotated[
    str | None,
    typer.Option(
        help="How pictures or texts become inputs: a recipe's name (imagenet, grayscale, bert) or a TOML file."
    ),
]
SkipBadFlag = Annotated[
    bool, typer.Option("--skip-bad", help="Leave unreadable samples out, listed, instead of failing.")
]
GateFlag = Annotated[
    str, typer.Option(help="Thresholds that decide: top1=1%,cosine=0.99,OUTPUT:sqnr=20. Default: by kind of output.")
]
DeviceFlag = Annotated[Device, typer.Option(help="Where onnxruntime runs the baseline and the typed graph.")]
FormatFlag = Annotated[Format, typer.Option(help="How the result is printed on stdout.")]
OutFlag = Annotated[
    Path | None, typer.Option("--out", "-o", help="Run directory. Default: trtopt-out/<model>/<precision>.")
]
