"""`trtopt init`: a trtopt.toml to start from, made for one model and explained line by line.

Touches: reads the model; writes trtopt.toml in the working directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trtopt.export.source import Source
    from trtopt.types import TensorSpec

_TOKENS = (8, 32, 128)
_SIDE = (224, 224, 224)
"""Smallest, usual and largest of a dynamic dimension that is no batch: of token ids, and of anything else."""

_SETTINGS = """\
# Settings of trtopt for {model}
#
{tensors}
#
# A table is a command, a key one of its flags: `trtopt convert --help` explains them all. What is typed on the command
# line goes before the environment (TRTOPT_CONVERT_PRECISION=fp16), and that before this file. `trtopt config` shows
# which value holds, and where it is from.

[convert]
# int8 stores weights in a quarter of FP32's size, and needs calib. fp16 and bf16 take half, need no calibration, and
# drift less.
precision = "int8"

# YOURS TO FILL IN. Samples that INT8 scales are measured on, 100 to 500 of them, like those of production: a folder of
# pictures, .npy, .npz, .jsonl, .parquet, or package.module:function.
calib = "data/calib"

# YOURS TO FILL IN. Samples that the result is judged on: others than those of calib, as many as you have. With labels
# (folders named after classes, or an array `labels`) the gate is about accuracy, without about agreement with FP32.
data = "data/eval"
{recipe}
{shape}

# What decides between exit codes 0, 1 (a gate failed) and 4 (too few samples to tell). Without this line there are
# defaults by kind of output, and too few samples for one of them exit 0.
{reasons}
{gate}

[compare]
# The same, for `trtopt compare {name} RUN`.
data = "data/eval"
{gate}
"""


def init(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The trained network, as for trtopt convert.", show_default=False)],
) -> None:
    """Write a trtopt.toml for a model into the working directory: shapes and gates that fit it, each explained.

    What is there already is never overwritten.
    """
    import os

    from typer.core import TyperGroup

    from trtopt.cli.settings import FILE, gather
    from trtopt.errors import StoreError, UsageError
    from trtopt.export.source import identify

    group = context.find_root().command
    assert isinstance(group, TyperGroup)
    there = gather(group, os.environ).file
    if there:
        raise UsageError(f"{there} holds settings already", fix="Edit it, or move it away first")
    text = settings(identify(str(model)))
    path = Path(FILE)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise StoreError(f"{FILE} cannot be written here", why=error.strerror or str(error)) from error
    print(f"{FILE}: put your samples into calib and data, then run: trtopt convert {model}")


def settings(source: Source) -> str:
    """The text of a trtopt.toml for a source; for one that only its framework can read, with less of its own.

    Raises:
        ModelError: it is an ONNX file that cannot be read.
    """
    from trtopt.export.onnx import describe
    from trtopt.report.words import plain

    model = plain(source.text)
    if source.kind != "onnx":
        return _SETTINGS.format(
            model=model,
            tensors="# Inputs and outputs are known once it is exported: `trtopt export`, then `trtopt inspect`.",
            recipe=_recipe(()),
            shape=_FREE_SHAPE,
            reasons='# For example "top1=1%" for class scores, "cosine=0.99" for embeddings.',
            gate='# gate = "top1=1%"',
            name=model,
        )
    found = describe(Path(source.text))
    gate, reasons = _gate(found.outputs)
    return _SETTINGS.format(
        model=model,
        tensors="\n".join(
            [_line("input", each) for each in found.inputs] + [_line("output", each) for each in found.outputs]
        ),
        recipe=_recipe(found.inputs),
        shape=_shape(found.inputs),
        reasons=reasons,
        gate=f"gate = {_quoted(gate)}" if gate else '# gate = "matched=99%,extra=1%"',
        name=model,
    )


_FREE_SHAPE = """
# Shapes of each input, smallest:usual:largest, where neither the model nor the data say them; and types other than
# float32.
# shape = ["image=1x3x224x224:8x3x224x224:32x3x224x224"]
# dtype = ["ids=int64"]"""


def _line(role: str, spec: TensorSpec) -> str:
    from trtopt.report.words import plain

    return plain(f"#   {role:<8}{spec.name}  {spec.dtype} [{', '.join(map(str, spec.shape))}]")


def _quoted(text: str) -> str:
    """A TOML string: JSON's, but for one control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _recipe(inputs: Sequence[TensorSpec]) -> str:
    """How images or texts become inputs, and what classes are called, where the model looks like taking them."""
    if any(spec.dtype in ("int64", "int32") for spec in inputs):
        return (
            "\n# How texts become token ids: a recipe's name, or a TOML file. Not needed for data that holds ids.\n"
            '# recipe = "bert"'
        )
    channels = {size for spec in inputs if len(spec.shape) == 4 for size in (spec.shape[1], spec.shape[3])} & {1, 3}
    if not channels and inputs:
        return ""
    name = "grayscale" if channels == {1} else "imagenet"
    return (
        "\n# How images become inputs (size, colours): a recipe's name, or a TOML file. Not needed for arrays.\n"
        f'# recipe = "{name}"\n'
        "\n# Names of the classes, one per line, in the order of the scores: for images in class folders, unless each\n"
        "# class has a folder and their sorted order is that of the scores.\n"
        '# classes = "classes.txt"'
    )


def _shape(inputs: Sequence[TensorSpec]) -> str:
    from trtopt.report.words import plain
    from trtopt.shapes import DEFAULT_BATCH

    tokens = {dim for spec in inputs if spec.dtype.startswith("int") for dim in spec.shape[1:]}
    flags, guessed = [], []
    for spec in inputs:
        dynamic = [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]
        if not dynamic:
            continue
        guesses = [DEFAULT_BATCH, *(_TOKENS if dim in tokens else _SIDE for dim in spec.shape[1:])]
        ranges = [(dim,) * 3 if isinstance(dim, int) else guess for dim, guess in zip(spec.shape, guesses, strict=True)]
        flags.append(f"{spec.name}=" + ":".join("x".join(map(str, sizes)) for sizes in zip(*ranges, strict=True)))
        guessed += [f"{spec.shape[axis]} of {spec.name}" for axis in dynamic if axis]
    if not flags:
        return "\n# Every input has a fixed shape: there is nothing to say about shapes."
    hint = f"\n# GUESSED, put your own sizes: {plain(', '.join(guessed))}." if guessed else ""
    lines = "".join(f"\n  {_quoted(flag)}," for flag in flags)
    return f"""
# Shapes of each dynamic input, smallest:usual:largest. The engine takes what lies between, and is fastest at the usual
# one; a batch of 1 to {DEFAULT_BATCH[2]} is what is assumed without this.{hint}
shape = [{lines}
]"""


def _gate(outputs: Sequence[TensorSpec]) -> tuple[str, str]:
    """Gates for all outputs, and a comment with the reason of each; no gates where several outputs are read as one."""
    from trtopt.compare.catalog import METRICS
    from trtopt.compare.gate import DEFAULTS
    from trtopt.compare.limits import parse_gates
    from trtopt.errors import UsageError
    from trtopt.report.words import plain

    if any(re.search("box|detect", spec.name.lower()) or _may_be_boxes(spec) for spec in outputs):
        return (
            "",
            "# Maybe detections: matched is the share of FP32's boxes that are found again, extra that of new ones.",
        )
    gates, reasons = [], []
    for spec in outputs:
        kind, reason = _kind(spec)
        metric, limit = DEFAULTS[kind][0]
        gate = f"{metric}={limit:g}{METRICS[metric].unit}"
        named = f"{spec.name}:{gate}" if len(outputs) > 1 else gate
        try:
            parse_gates(named)
        except UsageError:  # a name that cannot stand in a gate: the metric then holds for every output that has it
            named = gate
        gates.append(named)
        reasons.append(plain(f"# {spec.name}: {reason}"))
    return ",".join(dict.fromkeys(gates)), "\n".join(reasons)


def _may_be_boxes(spec: TensorSpec) -> bool:
    """Whether only its values can tell if it holds corners, score and class of boxes (`kinds/detection.py`)."""
    return spec.dtype.startswith(("float", "bfloat")) and len(spec.shape) == 3 and spec.shape[-1] == 6


def _kind(spec: TensorSpec) -> tuple[str, str]:
    """How the output is most likely read, a key of `trtopt.compare.gate.DEFAULTS`, and what a gate on it says."""
    from trtopt.compare.kinds.segmentation import named_classes

    if not spec.dtype.startswith(("float", "bfloat")):
        if named_classes(spec.name, len(spec.shape)):
            return "segmentation", "classes of pixels: miou is the mean overlap with FP32's pixels of each class."
        return "exact", "whole numbers: equal is the share of elements that must stay the same."
    vector = len(spec.shape) > 1 and spec.shape[-1] != 1 and all(size == 1 for size in spec.shape[1:-1])
    if vector and re.search("logit|score|prob|class|softmax", spec.name.lower()):
        return "scores", "class scores: top1 is the largest drop of accuracy (without labels: of agreement), in points."
    hint = " For class scores: top1=1%, the largest drop." if vector else ""
    hint = " For a segmentation: miou=99%." if len(spec.shape) == 4 else hint
    return "values", f"cosine is the least similarity with FP32, 1 being identical.{hint}"
