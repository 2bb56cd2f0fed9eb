"""Flags shared by several commands.

Touches: nothing.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtopt.compare.kinds import kinds
from trtopt.errors import UsageError
from trtopt.report import formats

if TYPE_CHECKING:

    class Format(str, Enum):
        """Output format on stdout: a plug-in of `trtopt.report`. These two are named in code."""

        text = "text"
        json = "json"
else:
    Format = Enum("Format", {name: name for name in ("text", *formats())}, type=str)


class Device(str, Enum):
    """Device of onnxruntime."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


ShapeFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Shapes of an input, smallest:usual:largest: input=1x3x224x224:8x3x224x224:32x3x224x224, or one "
        "fixed shape."
    ),
]
KeepFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep nodes in higher precision: NODE, a glob, an operator, first, last or block:PREFIX, with =fp32 if "
        "--rest is lower. Repeatable."
    ),
]
DtypeFlag = Annotated[
    list[str] | None,
    typer.Option(help="Type of an input of a factory or of TorchScript, if it is not float32: ids=int64."),
]
WeightsFlag = Annotated[
    Path | None, typer.Option(help="Weights for a factory's module: .safetensors, or a .pt of a state_dict.")
]
SignatureFlag = Annotated[str | None, typer.Option(help="The signature of a SavedModel. Default: serving_default.")]
AllowDriftFlag = Annotated[
    bool, typer.Option("--allow-export-drift", help="Continue if the outputs of the exported model differ.")
]
ExportTimeoutFlag = Annotated[float, typer.Option(help="Time limit for the export, in seconds.", min=1)]
RecipeFlag = Annotated[
    str | None,
    typer.Option(
        help="How images or texts become inputs: the name of a recipe (imagenet, grayscale, bert) or a TOML file."
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
        help="A CSV file with lines FILE,LABEL for a folder of images. Default: its labels.csv, if there is one."
    ),
]
SkipBadFlag = Annotated[bool, typer.Option("--skip-bad", help="Skip and list unreadable samples instead of failing.")]
GateFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Thresholds: top1=1%,cosine=0.99,OUTPUT:sqnr=20. May be repeated. Default: depends on the kind of output."
    ),
]
AllowInconclusiveFlag = Annotated[
    bool, typer.Option("--allow-inconclusive", help="Exit 0, not 4, if a gate of --gate is inconclusive.")
]
KindFlag = Annotated[
    list[str] | None,
    typer.Option(help=f"Kind of an output, if the guess is wrong: OUTPUT={'|'.join(kinds())}."),
]
MetricFlag = Annotated[
    list[str] | None,
    typer.Option(help="A custom metric, package.module:function(reference, candidate, labels) -> dict."),
]
DeviceFlag = Annotated[Device, typer.Option(help="Where onnxruntime runs the baseline and the typed graph.")]
FormatFlag = Annotated[Format, typer.Option(help="How the result is printed on stdout.")]
OutFlag = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Run directory. Default: trtopt-out/<model>/<precision>; <model> gets a digest if another one has "
        "the same name.",
    ),
]


def joined(gates: list[str] | None) -> str:
    """Join the texts of all `--gate` flags; empty if there are none.

    Raises:
        UsageError: one is blank, such as from an unset variable, which must not loosen the gates.
    """
    texts = gates or []
    if not all(text.strip() for text in texts):
        raise UsageError("--gate is empty", fix="Write METRIC=LIMIT, or leave out the flag")
    return ",".join(texts)
