"""How far a candidate's outputs are from the baseline's, accumulated batch by batch.

Memory does not grow with the size of the outputs; a few bytes a sample are kept, for statistics over samples.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trtopt.errors import ModelError
from trtopt.types import OutputDrift, Spread, WorstSample

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
WORST_KEPT = 50
_SPREAD_DB = (-20.0, 160.0)
_SPREAD_BINS = 90
"""Bins of 2 dB; what lies outside is counted in the outermost."""

TOP5_CLASSES = 10
"""Below this many classes the candidate's top 5 holds the baseline's choice too easily to say anything."""


@dataclass(slots=True)
class OutputMetrics:
    """Accumulates one output; feed it with `add`, read it with `drift`. The result does not depend on the batches.

    A sample with a NaN or Inf is in `bad`, in `bad_fp32` too when FP32 is the one that gave it, and in no mean. For
    all other samples, in order, `noise` holds the error energy relative to the signal energy, and where the output has
    classes, `agree` whether both chose the same, and `right` who was right: FP32 (1), the candidate (2), both (3).
    `good` are their indices.
    """

    name: str
    bad: array[int] = field(default_factory=lambda: array("q"))
    bad_fp32: int = 0
    good: array[int] = field(default_factory=lambda: array("q"))
    noise: array[float] = field(default_factory=lambda: array("d"))
    agree: bytearray = field(default_factory=bytearray)
    right: bytearray = field(default_factory=bytearray)
    _exact: bool = False
    _classes: int | None = None
    _softmax: bool = True
    _in_range: bool = True
    _top5: int = 0
    _elements: int = 0
    _equal: int = 0
    _signal: float = 0.0
    _error: float = 0.0
    _absolute: float = 0.0
    _largest: float = 0.0
    _product: float = 0.0
    _energy: float = 0.0

    def add(
        self, reference: Array, candidate: Array, indices: tuple[int, ...], labels: tuple[int, ...] | None = None
    ) -> None:
        """Take one batch of both outputs. `indices` are the samples in it; `labels` their classes.

        With more than one sample, the first axis of the output is the batch's.

        Raises:
            ModelError: the shapes differ, or one is of integers and the other is not, or the first axis is no batch.
        """
        self._check(reference, candidate, len(indices))
        self._exact = not _is_float(reference)
        if self._exact:
            self._elements += reference.size
            self._equal += int(np.count_nonzero(reference == candidate))
            return
        x = reference.astype(np.float64).reshape(len(indices), -1)
        y = candidate.astype(np.float64).reshape(len(indices), -1)
        good = np.isfinite(x).all(axis=1)
        self.bad_fp32 += int(np.count_nonzero(~good))
        good &= np.isfinite(y).all(axis=1)
        self.bad.extend(indices[i] for i in np.flatnonzero(~good))
        x, y = x[good], y[good]
        if x.size:
            self.good.extend(indices[i] for i in np.flatnonzero(good))
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes NaN, and NaN fails every gate
            self._add_errors(x, y)
        # Class scores are one vector a sample, [n, classes] or [n, classes, 1, 1], of the same length for all.
        shape = reference.shape
        vector = shape[:1] == (len(indices),) and sum(size > 1 for size in shape[1:]) == 1
        classes = x.shape[1] if vector else 0
        self._classes = classes if self._classes in (None, classes) else 0
        if self._classes and len(x):
            self._add_classes(x, y, np.asarray(labels)[good] if labels is not None else None)

    def _check(self, reference: Array, candidate: Array, count: int) -> None:
        fix = "Compare a model with what was made from it"
        if reference.shape != candidate.shape:
            raise ModelError(
                f"output {self.name} has another shape in the candidate",
                why=f"{list(reference.shape)} in FP32, {list(candidate.shape)} in the candidate",
                fix=fix,
            )
        if _is_float(reference) != _is_float(candidate):
            raise ModelError(
                f"output {self.name} has another type in the candidate",
                why=f"{reference.dtype.name} in FP32, {candidate.dtype.name} in the candidate",
                fix=fix,
            )
        if count != 1 and reference.shape[:1] != (count,):
            raise ModelError(
                f"output {self.name} has no row for each sample",
                why=f"its shape is {list(reference.shape)} for {count} samples",
                fix="Run the samples one by one",
            )

    def _add_errors(self, x: Floats, y: Floats) -> None:
        if not x.size:
            return
        difference = np.abs(x - y)
        signal, error = (x * x).sum(axis=1), (difference * difference).sum(axis=1)
        self._elements += x.size
        self._signal += float(signal.sum())
        self._error += float(error.sum())
        self._absolute += float(difference.sum())
        self._largest = max(self._largest, float(difference.max()))
        self._product += float((x * y).sum())
        self._energy += float((y * y).sum())
        self.noise.extend(np.divide(error, signal, out=np.where(error > 0, np.inf, 0.0), where=signal != 0).tolist())

    def _add_classes(self, x: Floats, y: Floats, labels: npt.NDArray[np.int64] | None) -> None:
        classes = x.shape[1]
        self._softmax &= bool((x >= 0).all() and np.allclose(x.sum(axis=1), 1.0, atol=1e-3))
        best, chosen = x.argmax(axis=1), y.argmax(axis=1)
        self.agree.extend((best == chosen).astype(np.uint8))
        # The rank of FP32's class in a stable sort of the candidate's: ties go to the lower index, as with argmax.
        score = np.take_along_axis(y, best[:, None], axis=1)
        before = (y > score) | ((y == score) & (np.arange(classes) < best[:, None]))
        self._top5 += int(np.count_nonzero(before.sum(axis=1) < 5))
        if labels is not None:
            self._in_range &= bool(((labels >= 0) & (labels < classes)).all())
            self.right.extend(((best == labels) + 2 * (chosen == labels)).astype(np.uint8))

    @property
    def kind(self) -> str:
        """How the output is read: `exact`, `scores` or `values` (see `OutputDrift`).

        Integers and booleans are `exact`. One vector of floats a sample holds class `scores` when every one of them is
        a softmax (non-negative, sum 1), when the output's name says so, or when the labels fit; all else is `values`.
        """
        if self._exact:
            return "exact"
        named = re.search("logit|score|prob|class|softmax", self.name.lower())
        softmax = self._softmax and bool(self.agree)
        return "scores" if self._classes and (named or softmax or self.labels_fit) else "values"

    @property
    def labels_fit(self) -> bool:
        """Whether the labels are those of this output: in range, and FP32 beats guessing.

        An output that holds something else (an embedding beside the logits), or labels numbered in another way, would
        give FP32 and any candidate the same accuracy near zero, and a gate on its drop would pass whatever happened.
        Guessing among c classes is right on n/c of n samples, with a standard deviation of sqrt(n (1/c) (1 - 1/c));
        FP32 must be two of them above it, or right every time.
        """
        if not self.right or not self._in_range or not self._classes:
            return False
        count, chance = len(self.right), 1.0 / self._classes
        hits = self.right.count(1) + self.right.count(3)
        return hits == count or hits > count * chance + 2.0 * math.sqrt(count * chance * (1.0 - chance))

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return every metric that this output has, by name; `ids` name the samples."""
        return OutputDrift(
            output=self.name,
            kind=self.kind,
            values=self._values(),
            counts=self._counts(),
            first_bad=self._first_bad(ids),
            spread=self._spread(),
            worst=self._worst(ids),
        )

    def _counts(self) -> dict[str, int]:
        if self.kind != "scores" or not self.agree:
            return {}
        found = {"samples": len(self.agree), "agree": self.agree.count(1)}
        if self._classes is not None and self._classes >= TOP5_CLASSES:
            found["top5"] = self._top5
        if self.labels_fit:
            found |= {
                name: self.right.count(who) for who, name in ((3, "both"), (1, "only_fp32"), (2, "only_candidate"))
            }
        return found

    def _first_bad(self, ids: Sequence[str]) -> str:
        if not self.bad:
            return ""
        return ids[self.bad[0]] + (f"; FP32 itself gives it in {self.bad_fp32}" if self.bad_fp32 else "")

    def _spread(self) -> Spread | None:
        noise = np.frombuffer(self.noise, np.float64)
        decibels = np.clip(-10.0 * np.log10(noise[noise > 0]), *_SPREAD_DB) if noise.size else noise
        if not decibels.size:
            return None
        edges = np.linspace(*_SPREAD_DB, _SPREAD_BINS + 1)
        counts, _ = np.histogram(decibels, edges)
        used = np.flatnonzero(counts)
        first, last = int(used[0]), int(used[-1]) + 1
        return Spread(edges=tuple(edges[first : last + 1].tolist()), counts=tuple(counts[first:last].tolist()))

    def _worst(self, ids: Sequence[str]) -> tuple[WorstSample, ...]:
        """The samples with the most noise, the worst first, those without any left out."""
        places = sorted(range(len(self.noise)), key=lambda place: -self.noise[place])[:WORST_KEPT]
        return tuple(
            WorstSample(
                sample=ids[self.good[place]],
                index=self.good[place],
                sqnr=-10.0 * math.log10(self.noise[place]),
                note=self._story(place),
            )
            for place in places
            if self.noise[place] > 0
        )

    def _story(self, place: int) -> str:
        if self.kind != "scores" or not self.agree:
            return ""
        who = ("both wrong", "only FP32 right", "only the candidate right", "both right")
        same = "same class" if self.agree[place] else "another class than FP32"
        return f"{same}, {who[self.right[place]]}" if self.labels_fit else same

    def _values(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self._exact:
            return {"equal": 100.0 * self._equal / self._elements} if self._elements else {}
        if self.kind == "scores" and self.agree:
            if self.labels_fit:
                one, other, both = (self.right.count(who) for who in (1, 2, 3))
                found["accuracy_fp32"] = 100.0 * (one + both) / len(self.right)
                found["accuracy"] = 100.0 * (other + both) / len(self.right)
            found["top1"] = 100.0 * self.agree.count(1) / len(self.agree)
            if self._classes is not None and self._classes >= TOP5_CLASSES:
                found["top5"] = 100.0 * self._top5 / len(self.agree)
        if self._elements:
            found["cosine"] = self._similarity()
            found["sqnr"] = _decibel(self._signal, self._error)
            found["rmse"] = math.sqrt(self._error / self._elements)
            found["max_abs"] = self._largest
            found["mean_abs"] = self._absolute / self._elements
        found["nonfinite"] = float(len(self.bad))
        return found

    def _similarity(self) -> float:
        if not self._signal or not self._energy:  # two zero vectors point the same way, a zero and another do not
            return float(not self._error)
        # NaN where the sums overflowed: it fails every gate.
        return min(1.0, max(-1.0, self._product / math.sqrt(self._signal) / math.sqrt(self._energy)))


def _decibel(signal: float, error: float) -> float:
    if not error:
        return math.inf
    return 10.0 * (math.log10(signal) - math.log10(error)) if signal else -math.inf


def _is_float(array: Array) -> bool:
    # numpy does not count ml_dtypes' bfloat16 among its floating types.
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
