"""Segmentation, a class per pixel: scores of several classes, one probability (in or out), or class indices.

Touches: nothing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.compare.kinds import Opening
from trtopt.compare.measures.decisions import Counts, Decisions
from trtopt.compare.measures.noise import MEASURED, Noise
from trtopt.compare.measures.outputs import Array, Outputs, are_probabilities, is_float, is_softmax
from trtopt.compare.measures.worst import suspects, worst
from trtopt.errors import ModelError
from trtopt.types import OutputDrift

TAKES = (
    "a map per sample: scores [n, classes, height, width], one score [n, height, width] or [n, 1, height, width], "
    "or class indices of that shape"
)
PLAIN = False
METRICS = ("pixels", "miou", "miou_min", "recall", *MEASURED)

MAX_CLASSES = 1 << 16
"""Limit on the number of classes; larger integers are not class indices."""

_VISIBLE = 0.005
"""Share of a sample's pixels from which on a class counts in that sample: a few pixels may come and go."""

_SCORES = re.compile(r"seg|parsing|panoptic|^logits?$")
_MAPS = re.compile(r"seg|parsing|panoptic|saliency|mask")
_PROBABILITIES = re.compile(r"sigmoid|prob")
_OTHERS = re.compile(r"feat|embed|hidden|attention")
"""Names of outputs with a class per pixel, and of others: feature maps, depth maps and images have the same shapes."""


@dataclass(slots=True)
class Tally:
    """Numbers of pixels by class.

    Attributes:
        decisions: the pixels by FP32's class, and those to which the candidate assigns the same class.
        candidate: the number of pixels to which the candidate assigns each class, [classes].
        agree: fraction of pixels with the same class in both models, per sample.
    """

    decisions: Decisions = field(default_factory=Decisions)
    candidate: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    agree: array[float] = field(default_factory=lambda: array("d"))
    least: float = 1.0

    def add(self, reference: Array, candidate: Array) -> None:
        """Add one sample: FP32's and the candidate's class of every pixel, integers from 0."""
        x, y = reference.reshape(-1).astype(np.intp), candidate.reshape(-1).astype(np.intp)
        if not x.size:
            return
        same = x == y
        self.decisions.add(x, same)
        self.candidate = _added(self.candidate, np.bincount(y))
        self.agree.append(np.count_nonzero(same) / x.size)
        self.least = min(self.least, _sample_miou(x, y))

    def values(self) -> dict[str, float]:
        """Return the agreement of pixels, and the mean IoU of classes (of all samples, and of the worst), in percent.

        The recall of the worst class is among them if FP32 assigns two classes or more.

        The mean does not include classes that neither model assigns to any pixel of the dataset.
        """
        reference = self.decisions.seen
        pixels = int(reference.sum())
        if not pixels:
            return {}
        both = _added(self.decisions.kept, np.zeros(len(self.candidate), np.int64))
        union = _added(reference, self.candidate) - both
        used = union > 0
        overlap = both[used] / union[used]
        return {
            "pixels": 100.0 * int(both.sum()) / pixels,
            "miou": 100.0 * float(overlap.mean()),
            "miou_min": 100.0 * self.least,
        } | self.decisions.values()

    def counts(self) -> dict[str, int]:
        """Return the number of samples, and of classes that FP32 assigns; with only one, agreement shows nothing."""
        if not self.agree:
            return {}
        chosen = int(np.count_nonzero(self.decisions.seen))
        return {"samples": len(self.agree), "chosen": chosen} | self.decisions.counts()


class Segmentation:
    """Accumulator of the agreement of classes per pixel, and of the quantization error of scores.

    One score per pixel is a probability, with threshold 0.5, if all of FP32's scores are in [0, 1] (up to rounding).
    Otherwise it is a logit, with threshold 0. Only all samples together show which is right, so both are counted.
    """

    reads: tuple[str, ...] = ()
    note = ""

    def __init__(self, name: str, form: str, *, sure: bool, asked: bool) -> None:
        self.name = name
        self.noise = Noise()
        self._form = form
        self._sure = sure
        self._asked = asked
        self._possible = True
        self._in_range = True
        self._tally, self._signs = Tally(), Tally()
        self._indices = array("q")

    def add(self, batch: Outputs) -> None:
        """Add one batch.

        Raises:
            ModelError: the user named this kind, and the integers are not class indices (negative or too large).
        """
        reference, candidate = batch.both(self.name)
        if _form(batch, self.name) != self._form:
            self._possible = False
        if not self._possible:
            return
        if self._form == "classes":
            self._add_classes(reference, candidate, batch)
            return
        rows = batch.rows(self.name)
        self.noise.add(rows)
        for i in np.flatnonzero(rows.comparable) if reference.size else ():
            if self._possible:
                self._add_scores(reference[i], candidate[i])

    def _add_classes(self, reference: Array, candidate: Array, batch: Outputs) -> None:
        if not all(_are_classes(array) for array in (reference, candidate)):
            if self._asked:
                raise ModelError(
                    f"output {self.name} cannot be read as segmentation",
                    why=f"it contains integers outside 0 to {MAX_CLASSES - 1}, which are not class indices",
                    fix=f"Leave --kind {self.name}=segmentation out",
                )
            self._possible = False
            return
        self._indices.extend(batch.indices)
        for x, y in zip(reference, candidate, strict=True):
            self._tally.add(x, y)

    def _add_scores(self, reference: Any, candidate: Any) -> None:
        """Add the scores of one comparable sample."""
        if self._form == "scores":
            self._possible &= self._sure or is_softmax(reference, axis=0)
            self._tally.add(reference.argmax(axis=0), candidate.argmax(axis=0))
            return
        self._in_range &= are_probabilities(reference)
        self._possible &= self._in_range or self._asked
        self._tally.add(reference >= 0.5, candidate >= 0.5)
        if self._asked:
            self._signs.add(reference >= 0, candidate >= 0)

    def fits(self) -> bool:
        """Return whether the name says so and the values allow it, or every pixel of FP32 is a softmax over classes."""
        return self._possible and (self._sure or bool(self._tally.agree))

    def suspects(self, count: int) -> set[int]:
        """Return the indices of the samples with the lowest SQNR, or the most differing pixels where there are none."""
        if self._form == "classes":
            return suspects(1.0 - np.array(self._tally.agree, np.float64), self._indices, count)
        return self.noise.suspects(count)

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the agreement with FP32, and the quantization error of scores."""
        tally = self._tally if self._in_range else self._signs
        values = tally.values()
        if self._form == "classes":
            differing = [1.0 - fraction for fraction in tally.agree]
            samples = worst(differing, self._indices, ids, lambda i: _note(tally, i))
            return OutputDrift(
                output=self.name, kind="segmentation", values=values, counts=tally.counts(), worst=samples
            )
        return OutputDrift(
            output=self.name,
            kind="segmentation",
            values=values | self.noise.values(),
            counts=tally.counts(),
            first_bad=self.noise.first_bad(ids),
            spread=self.noise.spread(),
            worst=self.noise.worst(ids, lambda i: _note(tally, i)),
        )


def reader(opening: Opening) -> Segmentation | None:
    """Return a reader of a map per sample, or None for an output that is not one of classes.

    A single score per pixel, or integers, are read as classes only if the output's name says so.
    """
    form = _form(opening.first, opening.name)
    named = _is_named(opening.name.lower(), form, opening.first.reference[opening.name].ndim)
    if not form or not (named or opening.asked or form == "scores"):
        return None
    return Segmentation(opening.name, form, sure=named or opening.asked, asked=opening.asked)


def named_classes(name: str, axes: int) -> bool:
    """Return whether an output of integers with this name and number of axes is read as classes of pixels."""
    return axes in (3, 4) and _is_named(name.lower(), "classes", axes)


def _is_named(name: str, form: str, axes: int) -> bool:
    """Return whether the name says that an output of this form contains classes of pixels."""
    if _OTHERS.search(name):
        return False
    if form == "score" and axes == 4 and _PROBABILITIES.search(name):  # with three axes, one may be time
        return True
    return (_SCORES if form == "scores" else _MAPS).search(name) is not None


def _form(batch: Outputs, name: str) -> str:
    """Return the content of a map's pixels: `scores` of classes, one `score`, or `classes`; empty for other outputs."""
    array = batch.reference[name]
    shape = array.shape
    if shape[:1] != (len(batch.indices),) or len(shape) not in (3, 4) or min(shape[-2:]) < 2:
        return ""
    if len(shape) == 4 and shape[1] > 1:
        return "scores" if is_float(array) else ""
    if is_float(array):
        return "score"
    return "classes" if array.dtype.kind in "iub" else ""


def _are_classes(array: Array) -> bool:
    return not array.size or 0 <= int(array.min()) <= int(array.max()) < MAX_CLASSES


def _note(tally: Tally, index: int) -> str:
    """Return a note on one comparable sample."""
    return f"{100.0 * tally.agree[index]:.2f} % of pixels agree"


def _sample_miou(x: npt.NDArray[np.intp], y: npt.NDArray[np.intp]) -> float:
    """Return the mean IoU in one sample, over the classes that FP32 gives to at least `_VISIBLE` of its pixels."""
    reference = np.bincount(x)
    visible = np.flatnonzero(reference >= _VISIBLE * x.size)
    shared = np.bincount(x[x == y], minlength=len(reference))
    candidate = np.bincount(y, minlength=len(reference))[: len(reference)]
    union = reference + candidate - shared
    return float((shared[visible] / union[visible]).mean())


def _added(one: Counts, other: Counts) -> Counts:
    """Return the sum of two vectors, the shorter one padded with zeros."""
    if len(one) < len(other):
        one, other = other, one
    total: Counts = one.copy()
    total[: len(other)] += other
    return total
