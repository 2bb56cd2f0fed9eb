"""Flags that several commands share, declared once.

Touches: nothing.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from trtopt.errors import UsageError


class Format(str, Enum):
    """How the result is printed on stdout."""

    text = "text"
    json = "json"
    junit = "junit"
    markdown = "markdown"
    github = "github"
    html = "html"


class Device(str, Enum):
    """Where onnxruntime runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


ShapeFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Shapes of an input, smallest:usual:largest: input=1x3x224x224:8x3x224x224:32x3x224x224, or one that is "
        "fixed."
    ),
]
DtypeFlag = Annotated[
    list[str] | None,
    typer.Option(help="Type of an input of a factory or of TorchScript, where it is not float32: ids=int64."),
]
WeightsFlag = Annotated[
    Path | None, typer.Option(help="Weights for a factory's module: .safetensors, or a .pt of a state_dict.")
]
SignatureFlag = Annotated[str | None, typer.Option(help="The signature of a SavedModel. Default: serving_default.")]
AllowDriftFlag = Annotated[
    bool, typer.Option("--allow-export-drift", help="Go on when the exported model does not compute the same.")
]
ExportTimeoutFlag = Annotated[float, typer.Option(help="Seconds that a framework may take to export.", min=1)]
RecipeFlag = Annotated[
    str | None,
    typer.Option(
        help="How pictures or texts become inputs: a recipe's name (imagenet, grayscale, bert) or a TOML file."
    ),
]
ClassesFlag = Annotated[
    Path | None,
    typer.Option(
        help="Names of the model's classes, for images in class folders: one per line, in the order of the scores, or "
        ".json."
    ),
]
LabelsFlag = Annotated[
    Path | None,
    typer.Option(
        help="A CSV file of lines FILE,LABEL for a folder of images. Default: labels.csv in it, where there is one."
    ),
]
SkipBadFlag = Annotated[
    bool, typer.Option("--skip-bad", help="Leave unreadable samples out, listed, instead of failing.")
]
GateFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Thresholds that decide: top1=1%,cosine=0.99,OUTPUT:sqnr=20. May be repeated. Default: by kind of output."
    ),
]
AllowInconclusiveFlag = Annotated[
    bool, typer.Option("--allow-inconclusive", help="Exit 0, not 4, when a gate that you asked for is inconclusive.")
]
KindFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="How to read an output where the guess is wrong: OUTPUT=scores|values|exact|segmentation|detection."
    ),
]
MetricFlag = Annotated[
    list[str] | None,
    typer.Option(help="A metric of your own, package.module:function(reference, candidate, labels) -> dict."),
]
DeviceFlag = Annotated[Device, typer.Option(help="Where onnxruntime runs the baseline and the typed graph.")]
FormatFlag = Annotated[Format, typer.Option(help="How the result is printed on stdout.")]
OutFlag = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Run directory. Default: trtopt-out/<model>/<precision>; <model> gets a digest where another one has its "
        "name.",
    ),
]


def joined(gates: list[str] | None) -> str:
    """Return the texts of all `--gate` flags as one text; an empty one when there are none.

    Raises:
        UsageError: one is blank, as a variable is that was never set: it must not loosen the gates.
    """
    texts = gates or []
    if not all(text.strip() for text in texts):
        raise UsageError("--gate is empty", fix="Write METRIC=LIMIT, or leave it out")
    return ",".join(texts)
