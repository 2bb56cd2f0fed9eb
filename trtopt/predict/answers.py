"""Answers: the columns of a row, from the outputs of a network.

    top5     the five highest class scores and their classes; any number may follow `top`
    boxes    the boxes of a detector, with scores and classes
    raw      every output, unchanged

Touches: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.layout import layout
from trtopt.compare.measures.outputs import is_float
from trtopt.data.classes import score_count
from trtopt.errors import UsageError

Array = npt.NDArray[Any]
Column = Array | list[Array]
"""One array per row: an array whose first axis is that of the rows, or a list of arrays of different shapes."""

AUTO = "auto"
ANSWERS = (AUTO, "top5", "boxes", "raw")
TEXT = "str"
"""Type of a field of texts."""

_TOP = re.compile(r"top([1-9][0-9]*)")
_FIX = f"Choose one of {', '.join(ANSWERS)}; any number may follow top"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column: its name, the numpy name of its type or `str`, and the rank of the array in each row."""

    name: str
    dtype: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The fields of a row, and the function that computes them.

    Attributes:
        name: `top5`, `boxes` or `raw`.
        fields: the columns, in order.
        columns: returns the columns of a batch by name, given its outputs by name and the number of rows. The first
            axis of every output is that of the rows, or there is one row.
        watched: the outputs in which a NaN makes a row an error.
    """

    name: str
    fields: tuple[Field, ...]
    columns: Callable[[Mapping[str, Array], int], Mapping[str, Column]]
    watched: tuple[str, ...] = ()

    def bad(self, outputs: Mapping[str, Array], rows: int) -> dict[int, str]:
        """Return the reason of each row that has no answer, because an output is NaN."""
        reasons: dict[int, str] = {}
        for name in self.watched:
            array = outputs[name]
            if is_float(array) and (nan := np.isnan(array)).any():
                per_row = nan.reshape(rows, -1).any(axis=1)
                reasons |= {int(row): f"output {name} is NaN" for row in np.flatnonzero(per_row)}
        return reasons


def check_name(name: str) -> None:
    """Raise UsageError unless `name` is a kind of answer."""
    if name not in ANSWERS and not _TOP.fullmatch(name):
        raise UsageError(f"unknown answer {name!r}", fix=_FIX)


def choose(name: str, outputs: Mapping[str, Array], rowed: frozenset[str], classes: Sequence[str] = ()) -> Answers:
    """Return the answers of that name for a network, given its outputs for one sample.

    `auto` is `boxes` for a detector, `top5` where an output is one vector of floating-point numbers per sample, and
    `raw` otherwise.

    Args:
        name: `auto`, `top5`, `boxes` or `raw`.
        outputs: the outputs for one sample, by name.
        rowed: the outputs whose first axis is that of the samples.
        classes: the name of each class, in the order of the scores; empty if they are not known.

    Raises:
        UsageError: the name is unknown, or no output is of that kind.
    """
    check_name(name)
    scores = {
        output: array.shape[1:]
        for output, array in outputs.items()
        if output in rowed and is_float(array) and score_count(array.shape[1:])
    }
    corners = _corners(outputs)
    if name == AUTO:
        name = "boxes" if corners else "top5" if scores else "raw"
    shapes = ", ".join(f"{output} {list(array.shape)}" for output, array in outputs.items())
    if name == "raw":
        return _raw(outputs, rowed)
    if name == "boxes":
        if not corners:
            raise UsageError("no output holds boxes", why=f"the outputs are {shapes}", fix="Use --answers raw")
        return _boxes(corners, outputs, classes)
    if not scores:
        why = f"the outputs are {shapes}; class scores are one vector of floating-point numbers per sample"
        raise UsageError("no output holds class scores", why=why, fix="Use --answers raw")
    match = _TOP.fullmatch(name)
    assert match is not None
    if classes and len(classes) not in {score_count(shape) for shape in scores.values()}:
        counts = ", ".join(f"{output} has {score_count(shape)}" for output, shape in scores.items())
        raise UsageError(f"{len(classes)} class names do not fit the scores", why=counts, fix="Give one name per score")
    return _top(name, int(match[1]), {output: score_count(shape) for output, shape in scores.items()}, classes)


def plain(array: Array) -> Array:
    """Return an array of a type that files can hold: types that numpy itself does not have become float32."""
    return array if array.dtype.kind in "biufO" else array.astype(np.float32)


def type_name(array: Array) -> str:
    """Return the name of the type of `plain(array)`."""
    return TEXT if array.dtype.kind == "O" else plain(array).dtype.name


def _raw(outputs: Mapping[str, Array], rowed: frozenset[str]) -> Answers:
    def columns(batch: Mapping[str, Array], _: int) -> dict[str, Column]:
        return {name: plain(array) if name in rowed else [plain(array)] for name, array in batch.items()}

    fields = tuple(
        Field(name=name, dtype=type_name(array), rank=array.ndim - (name in rowed)) for name, array in outputs.items()
    )
    return Answers(name="raw", fields=fields, columns=columns)


def _top(name: str, most: int, scores: Mapping[str, int], classes: Sequence[str]) -> Answers:
    """Return the highest scores of each output; with several outputs, columns begin with the name of theirs."""
    prefix = {output: f"{output}_" if len(scores) > 1 else "" for output in scores}
    named = {output: np.array(classes, object) if len(classes) == count else None for output, count in scores.items()}

    def columns(batch: Mapping[str, Array], rows: int) -> dict[str, Column]:
        result: dict[str, Column] = {}
        for output, count in scores.items():
            vectors = batch[output].reshape(rows, count).astype(np.float32, copy=False)
            # Stable: of equal scores the lower class is first, as with argmax.
            best = np.argsort(-vectors, axis=1, kind="stable")[:, :most]
            names = named[output]
            result[f"{prefix[output]}classes"] = best if names is None else names[best]
            result[f"{prefix[output]}scores"] = np.take_along_axis(vectors, best, axis=1)
        return result

    fields = [
        field
        for output in scores
        for field in (
            Field(name=f"{prefix[output]}classes", dtype="int64" if named[output] is None else TEXT, rank=1),
            Field(name=f"{prefix[output]}scores", dtype="float32", rank=1),
        )
    ]
    return Answers(name=name, fields=tuple(fields), columns=columns, watched=tuple(scores))


def _corners(outputs: Mapping[str, Array]) -> str:
    """Return the output with the corners of boxes, [n, k, 4] or [k, 4], which has scores beside it; empty if none."""
    for name, array in outputs.items():
        if is_float(array) and array.ndim in (2, 3) and array.shape[-1] == 4 and "box" in name.lower():
            found = layout(name, outputs, [other for other in outputs if other != name], 1)
            if "scores" in found.roles:
                return name
    return ""


def _boxes(name: str, outputs: Mapping[str, Array], classes: Sequence[str]) -> Answers:
    """Return the boxes with a positive score: detectors fill up with boxes of score 0 or -1."""
    roles = layout(name, outputs, [other for other in outputs if other != name], 1).roles
    alone = outputs[name].ndim == 2
    names = np.array(classes, object)

    def columns(batch: Mapping[str, Array], rows: int) -> dict[str, Column]:
        result: dict[str, list[Array]] = {field.name: [] for field in fields}
        for row in range(rows):
            of_row = {role: batch[output] if alone else batch[output][row] for role, output in roles.items()}
            corners = plain(batch[name] if alone else batch[name][row])
            scores = plain(of_row["scores"]).reshape(-1)
            kept = scores > 0
            if "number" in of_row:
                kept &= np.arange(len(scores)) < int(of_row["number"].reshape(-1)[0])
            result["boxes"].append(corners[kept].astype(np.float32))
            result["scores"].append(scores[kept].astype(np.float32))
            if "classes" in of_row:
                result["classes"].append(_named(of_row["classes"].reshape(-1)[kept].astype(np.int64), names))
        return dict(result)

    fields = [Field(name="boxes", dtype="float32", rank=2), Field(name="scores", dtype="float32", rank=1)]
    if "classes" in roles:
        fields.append(Field(name="classes", dtype=TEXT if classes else "int64", rank=1))
    return Answers(name="boxes", fields=tuple(fields), columns=columns, watched=(name, roles["scores"]))


def _named(indices: npt.NDArray[np.int64], names: npt.NDArray[np.object_]) -> Array:
    """Return the names of classes; a class without a name is its index as text."""
    if not len(names):
        return indices
    return np.array([names[i] if 0 <= i < len(names) else str(i) for i in indices.tolist()], object)
