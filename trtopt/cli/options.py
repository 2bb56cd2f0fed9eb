"""Flags shared by several commands, and the groups in which `--help` shows them.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtopt.bench.units import BYTES, quantity
from trtopt.compare.kinds import kinds
from trtopt.errors import UsageError
from trtopt.precision import fallbacks
from trtopt.report import formats
from trtopt.types import Cache

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


INPUT, CALIBRATION, PRECISION, COMPARISON = "Input", "Calibration", "Precision", "Comparison"
TENSORRT, MEASUREMENT, OUTPUT, RUN = "TensorRT", "Measurement", "Output", "Run"
PANELS = (INPUT, CALIBRATION, PRECISION, COMPARISON, TENSORRT, MEASUREMENT, OUTPUT, RUN)
"""Groups of flags in `--help`, in their order."""


def choice(help: str, names: Sequence[str], panel: str, *declarations: str) -> Any:
    """Return an option whose values `--help` lists and the shell completes.

    The values are not checked: the code that takes them refuses unknown ones, and suggests the nearest name.
    """
    return typer.Option(
        *declarations,
        help=help,
        metavar=f"[{'|'.join(names)}]",
        autocompletion=lambda: list(names),
        rich_help_panel=panel,
    )


def _gate_help(value: list[str] | None) -> list[str] | None:
    """Print the metrics of gates and exit if the value is `help`."""
    if value != ["help"]:
        return value
    from trtopt.compare.reference import HEAD, rows

    *columns, _ = zip(HEAD, *rows(), strict=True)
    widths = [max(map(len, column)) for column in columns]
    for *cells, meaning in (HEAD, *rows()):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"{line}  {meaning}".rstrip())
    raise typer.Exit


ShapeFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Shapes of an input, smallest:usual:largest: input=1x3x224x224:8x3x224x224:32x3x224x224, or one "
        "fixed shape.",
        rich_help_panel=INPUT,
    ),
]
RestFlag = Annotated[str, choice("Fallback precision of nodes that are not quantized.", fallbacks(), PRECISION)]
KeepFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep nodes in higher precision: NODE, a glob, an operator, first, last or block:PREFIX, with =fp32 if "
        "--rest is lower. Repeatable.",
        rich_help_panel=PRECISION,
    ),
]
OnlyFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Lower these nodes only: a pattern as for --keep. The others stay in --rest, or in FP32 beside fp16 and "
        "bf16. Repeatable.",
        rich_help_panel=PRECISION,
    ),
]
DtypeFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Type of an input of a factory or of TorchScript, if it is not float32: ids=int64.", rich_help_panel=INPUT
    ),
]
WeightsFlag = Annotated[
    Path | None,
    typer.Option(help="Weights for a factory's module: .safetensors, or a .pt of a state_dict.", rich_help_panel=INPUT),
]
SignatureFlag = Annotated[
    str | None,
    typer.Option(help="The signature of a SavedModel. Default: serving_default.", rich_help_panel=INPUT),
]
AllowDriftFlag = Annotated[
    bool,
    typer.Option(
        "--allow-export-drift", help="Continue if the outputs of the exported model differ.", rich_help_panel=INPUT
    ),
]
ExportTimeoutFlag = Annotated[
    float, typer.Option(help="Time limit for the export, in seconds.", min=1, rich_help_panel=INPUT)
]
RecipeFlag = Annotated[
    str | None,
    typer.Option(
        help="How images or texts become inputs: the name of a recipe (imagenet, yolo, ...) or a TOML file.",
        rich_help_panel=INPUT,
    ),
]
ClassesFlag = Annotated[
    Path | None,
    typer.Option(
        help="Names of the model's classes, for images in class folders: one per line, in the order of the scores, or "
        ".json.",
        rich_help_panel=INPUT,
    ),
]
LabelsFlag = Annotated[
    Path | None,
    typer.Option(
        help="A CSV file with lines FILE,LABEL for a folder of images. Default: its labels.csv, if there is one.",
        rich_help_panel=INPUT,
    ),
]
SkipBadFlag = Annotated[
    bool,
    typer.Option("--skip-bad", help="Skip and list unreadable samples instead of failing.", rich_help_panel=INPUT),
]
SamplesFlag = Annotated[
    int | None,
    typer.Option(
        help="Use at most this many samples of each data set, spread evenly over it.",
        min=1,
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
GateFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Thresholds: top1=1%,cosine=0.99,OUTPUT:sqnr=20; of convert also speedup=1.2x,latency_p99=5ms. May be "
        "repeated. Default: depends on the kind of output. --gate help prints all metrics.",
        callback=lambda value: _gate_help(value),
        is_eager=True,
        rich_help_panel=COMPARISON,
    ),
]
AllowInconclusiveFlag = Annotated[
    bool,
    typer.Option(
        "--allow-inconclusive",
        help="Exit 0, not 4, if a gate of --gate is inconclusive.",
        rich_help_panel=COMPARISON,
    ),
]
KindFlag = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Kind of an output, if the guess is wrong: OUTPUT={'|'.join(kinds())}.", rich_help_panel=COMPARISON
    ),
]
MetricFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="A custom metric, package.module:function(reference, candidate, labels) -> dict.",
        rich_help_panel=COMPARISON,
    ),
]
DeviceFlag = Annotated[
    Device, typer.Option(help="Where onnxruntime runs the baseline and the typed graph.", rich_help_panel=RUN)
]
FormatFlag = Annotated[Format, typer.Option(help="How the result is printed on stdout.", rich_help_panel=OUTPUT)]
TextOrJsonFlag = Annotated[Format, typer.Option(help="text or json.", rich_help_panel=OUTPUT)]
OutFlag = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Run directory. Default: trtopt-out/<model>/<precision>; <model> gets a digest if another one has "
        "the same name.",
        rich_help_panel=OUTPUT,
    ),
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.", rich_help_panel=OUTPUT)]
VerboseFlag = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also print logs, that of the framework, and tracebacks.", rich_help_panel=OUTPUT
    ),
]
DryRunFlag = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check flags and files, and print the stages that would run. Writes nothing.",
        rich_help_panel=RUN,
    ),
]
ForceFlag = Annotated[
    bool, typer.Option("--force", help="Run every stage, also those whose result is cached.", rich_help_panel=RUN)
]


ShardFlag = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Work on the I-th of N parts of the data (sensitivity: the groups) only, and write a partial result for "
        "`trtopt merge`.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]


RayFlag = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="auto|ADDRESS",
        help="Divide the data (bench: the targets; sensitivity: the groups) among the workers of a Ray cluster, with "
        "one GPU each, or --ray-cores cores.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
RayCoresFlag = Annotated[
    int, typer.Option("--ray-cores", help="Cores of each worker of --ray without GPUs.", min=1, rich_help_panel=RUN)
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


def size(text: str | None, flag: str) -> int | None:
    """Return a size such as `8GiB` in bytes; None without one.

    Raises:
        UsageError: the number or the unit is missing or invalid.
    """
    return int(quantity(text, BYTES, flag, f"{flag} 8GiB")) if text else None


def cache(*, dry_run: bool, force: bool) -> Cache:
    """Return what a run does with the results of earlier runs.

    Raises:
        UsageError: the two flags contradict each other.
    """
    if dry_run and force:
        raise UsageError("--dry-run and --force cannot be combined", fix="Leave out one of them")
    return "show" if dry_run else "ignore" if force else "use"
