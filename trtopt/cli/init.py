"""`trtopt init`: write a commented trtopt.toml for one model.

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
"""Smallest, usual and largest size of a dynamic dimension other than the batch: of token ids, and of anything else."""

_SETTINGS = """\
# Settings of trtopt for {model}
#
{tensors}
#
# Each table is a command, each key one of its flags; `trtopt convert --help` explains them. Precedence: the command
# line, the environment (TRTOPT_CONVERT_PRECISION=fp16), this file. `trtopt config` shows each value and its origin.

[convert]
# int8 weights need a quarter of FP32's size, and calibration. fp16 and bf16 need half, no calibration, and drift less.
precision = "int8"

# TO FILL IN: calibration samples, 100 to 500, representative of production: a folder of images, .npy, .npz, .jsonl,
# .parquet, or package.module:function.
calib = "data/calib"

# TO FILL IN: evaluation samples, as many as you have, other than those of calib. With labels (folders named after
# classes, or an array `labels`) the gate checks accuracy, otherwise agreement with FP32.
data = "data/eval"
{recipe}
{shape}

# Thresholds that decide the exit code: 0, 1 (a gate failed) or 4 (too few samples). Without this line, the gates are
# defaults for the kind of output, and too few samples for them exit 0.
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
    """Write a trtopt.toml for a model into the working directory, with suitable shapes and gates, each explained.

    Existing settings are never overwritten.
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
        raise UsageError(f"{there} already contains settings", fix="Edit it, or move it away first")
    text = settings(identify(str(model)))
    path = Path(FILE)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise StoreError(f"cannot write {FILE}", why=error.strerror or str(error)) from error
    print(f"{FILE}: put your samples into calib and data, then run: trtopt convert {model}")


def settings(source: Source) -> str:
    """Return the text of a trtopt.toml for a source; it is less specific for one that only its framework can read.

    Raises:
        ModelError: the source is an ONNX file that cannot be read.
    """
    from trtopt.graph.file import describe
    from trtopt.report.page.words import plain

    model = plain(source.text)
    if source.kind != "onnx":
        return _SETTINGS.format(
            model=model,
            tensors="# To see inputs and outputs: `trtopt export`, then `trtopt inspect`.",
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
# Shapes of each input, smallest:usual:largest, if neither the model nor the data give them; and types other than
# float32.
# shape = ["image=1x3x224x224:8x3x224x224:32x3x224x224"]
# dtype = ["ids=int64"]"""


def _line(role: str, spec: TensorSpec) -> str:
    from trtopt.report.page.words import plain

    return plain(f"#   {role:<8}{spec.name}  {spec.dtype} [{', '.join(map(str, spec.shape))}]")


def _quoted(text: str) -> str:
    """Quote as a TOML string: JSON's, except for one control character that JSON does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _recipe(inputs: Sequence[TensorSpec]) -> str:
    """Return settings for recipe and class names if the inputs look like images or texts; else an empty text."""
    if any(spec.dtype in ("int64", "int32") for spec in inputs):
        return (
            "\n# How texts become token ids: a recipe's name, or a TOML file. Not needed if the data contains ids.\n"
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
    from trtopt.report.page.words import plain
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
        return "\n# Every input has a fixed shape, so shape is not needed."
    hint = f"\n# GUESSED, use your own sizes: {plain(', '.join(guessed))}." if guessed else ""
    lines = "".join(f"\n  {_quoted(flag)}," for flag in flags)
    return f"""
# Shapes of each dynamic input, smallest:usual:largest. The engine accepts all sizes between, fastest at the usual
# one. Without this line, a batch of 1 to {DEFAULT_BATCH[2]} is assumed.{hint}
shape = [{lines}
]"""


def _gate(outputs: Sequence[TensorSpec]) -> tuple[str, str]:
    """Return gates for all outputs and a comment with the reason of each; no gates for detection outputs."""
    from trtopt.compare.catalog import METRICS
    from trtopt.compare.defaults import DEFAULTS
    from trtopt.compare.gates import parse_gates
    from trtopt.errors import UsageError
    from trtopt.report.page.words import plain

    if any(re.search("box|detect", spec.name.lower()) or _may_be_boxes(spec) for spec in outputs):
        return (
            "",
            "# Possibly detections: matched is the share of FP32's boxes that are found, extra that of spurious ones.",
        )
    gates, reasons = [], []
    for spec in outputs:
        kind, reason = _kind(spec)
        metric, limit = DEFAULTS[kind][0]
        gate = f"{metric}={limit:g}{METRICS[metric].unit}"
        named = f"{spec.name}:{gate}" if len(outputs) > 1 else gate
        try:
            parse_gates(named)
        except UsageError:  # names that --gate cannot contain: the metric then applies to every output that has it
            named = gate
        gates.append(named)
        reasons.append(plain(f"# {spec.name}: {reason}"))
    return ",".join(dict.fromkeys(gates)), "\n".join(reasons)


def _may_be_boxes(spec: TensorSpec) -> bool:
    """Return whether the output may contain boxes (`kinds/detection.py`), which only its values can tell."""
    return spec.dtype.startswith(("float", "bfloat")) and len(spec.shape) == 3 and spec.shape[-1] == 6


def _kind(spec: TensorSpec) -> tuple[str, str]:
    """Return the most likely kind of an output, a key of `trtopt.compare.gate.DEFAULTS`, and an explanation of its
    gate.
    """
    from trtopt.compare.kinds.segmentation import named_classes

    if not spec.dtype.startswith(("float", "bfloat")):
        if named_classes(spec.name, len(spec.shape)):
            return "segmentation", "pixel classes: miou is the mean IoU with FP32's classes."
        return "exact", "integers: equal is the minimum share of unchanged elements."
    vector = len(spec.shape) > 1 and spec.shape[-1] != 1 and all(size == 1 for size in spec.shape[1:-1])
    if vector and re.search("logit|score|prob|class|softmax", spec.name.lower()):
        return (
            "scores",
            "class scores: top1 is the largest accepted drop of accuracy (without labels: of agreement), in points.",
        )
    hint = " For class scores: top1=1%, the largest drop." if vector else ""
    hint = " For a segmentation: miou=99%." if len(spec.shape) == 4 else hint
    return "values", f"cosine is the minimum similarity with FP32, where 1 is identical.{hint}"
