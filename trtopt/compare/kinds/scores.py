"""Scores of classes, one vector a sample: who wins, and with labels who is right.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trtopt.compare.kinds import Opening
from trtopt.compare.kinds.noise import Noise, summed
from trtopt.compare.kinds.outputs import Floats, Outputs, Rows, is_float
from trtopt.types import OutputDrift

TAKES = "one vector of numbers a sample, [n, classes] or [n, classes, 1, 1]"
PLAIN = False

TOP5_CLASSES = 10
"""Below this many classes the candidate's top 5 holds the baseline's choice too easily to say anything."""

_NAMES = re.compile(r"logit|score|prob|class|softmax")


class Scores:
    """Who wins, and errors value by value.

    For all samples without NaN and Inf, in order, `agree` says whether both chose the same class, and `right` who was
    right: FP32 (1), the candidate (2), both (3).
    """

    reads: tuple[str, ...] = ()
    note = ""

    def __init__(self, name: str, classes: int, *, sure: bool) -> None:
        self.name = name
        self.noise = Noise()
        self.agree = bytearray()
        self.right = bytearray()
        self._sure = sure
        self._classes = classes
        self._softmax = True
        self._in_range = True
        self._top5 = 0
        # Divergence of the scores as they are, and of their softmax: which it is, only all samples tell.
        self._divergence = np.zeros(2)

    def add(self, batch: Outputs) -> None:
        """Take one batch."""
        rows = batch.rows(self.name)
        if _classes(batch, self.name) != self._classes:
            self._classes = 0  # vectors of another length are no scores of the same classes
        if not self._classes:
            return
        self.noise.add(rows)
        if rows.finite.any():
            labels = None if batch.labels is None else np.asarray(batch.labels)[rows.finite]
            self._add(_good(rows.x, rows), _good(rows.y, rows), labels)

    def _add(self, x: Floats, y: Floats, labels: npt.NDArray[np.int64] | None) -> None:
        self._softmax = self._softmax and bool((x >= 0).all() and np.allclose(x.sum(axis=1), 1.0, atol=1e-3))
        best, chosen = x.argmax(axis=1), y.argmax(axis=1)
        self.agree.extend((best == chosen).astype(np.uint8))
        # The rank of FP32's class in a stable sort of the candidate's: ties go to the lower index, as with argmax.
        score = np.take_along_axis(y, best[:, None], axis=1)
        before = (y > score) | ((y == score) & (np.arange(self._classes) < best[:, None]))
        self._top5 += int(np.count_nonzero(before.sum(axis=1) < 5))
        as_is = _divergence(x, y) if self._softmax else np.zeros(len(x))
        self._divergence = summed(self._divergence, np.stack([as_is, _softmax_divergence(x, y)], axis=1))
        if labels is not None:
            self._in_range &= bool(((labels >= 0) & (labels < self._classes)).all())
            self.right.extend(((best == labels) + 2 * (chosen == labels)).astype(np.uint8))

    def fits(self) -> bool:
        """Whether the name says so, every vector of FP32 is a softmax (non-negative, sum 1), or the labels fit."""
        return self._classes > 0 and (self._sure or (self._softmax and bool(self.agree)) or self.labels_fit)

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
        """Return agreement, accuracy where labels fit, and the errors."""
        return OutputDrift(
            output=self.name,
            kind="scores",
            values=self._values(),
            counts=self._counts(),
            first_bad=self.noise.first_bad(ids),
            spread=self.noise.spread(),
            worst=self.noise.worst(ids, self._story),
        )

    def _counts(self) -> dict[str, int]:
        if not self.agree:
            return {}
        found = {"samples": len(self.agree), "agree": self.agree.count(1)}
        if self._classes >= TOP5_CLASSES:
            found["top5"] = self._top5
        if self.labels_fit:
            found |= {
                name: self.right.count(who) for who, name in ((3, "both"), (1, "only_fp32"), (2, "only_candidate"))
            }
        elif self.right:
            found["unfit"] = self.right.count(1) + self.right.count(3)
        return found

    def _values(self) -> dict[str, float]:
        counts, found = self._counts(), {}
        if counts:
            samples = counts["samples"]
            if "both" in counts:
                found["accuracy_fp32"] = 100.0 * (counts["both"] + counts["only_fp32"]) / samples
                found["accuracy"] = 100.0 * (counts["both"] + counts["only_candidate"]) / samples
            found["top1"] = 100.0 * counts["agree"] / samples
            if "top5" in counts:
                found["top5"] = 100.0 * counts["top5"] / samples
            found["kl"] = float(self._divergence[0 if self._softmax else 1]) / samples
        return found | self.noise.values()

    def _story(self, place: int) -> str:
        who = ("both wrong", "only FP32 right", "only the candidate right", "both right")
        same = "same class" if self.agree[place] else "another class than FP32"
        return f"{same}, {who[self.right[place]]}" if self.labels_fit else same


def reader(opening: Opening) -> Scores | None:
    """Read one vector of floats a sample."""
    classes = _classes(opening.first, opening.name)
    if not classes or not (opening.asked or is_float(opening.first.reference[opening.name])):
        return None
    return Scores(opening.name, classes, sure=opening.asked or _NAMES.search(opening.name.lower()) is not None)


def _classes(batch: Outputs, name: str) -> int:
    """The length of the vectors, or 0 where the output is not one vector a sample."""
    shape = batch.reference[name].shape
    vectors = shape[:1] == (len(batch.indices),) and sum(size > 1 for size in shape[1:]) == 1
    return math.prod(shape[1:]) if vectors else 0


def _good(array: npt.NDArray[np.generic], rows: Rows) -> Floats:
    return array[rows.finite].astype(np.float64)


def _divergence(x: Floats, y: Floats) -> Floats:
    """sum(x log(x / y) - x + y) of each row, which is the Kullback-Leibler divergence where both sum to 1, and is never
    negative where rounding keeps them from it (`scipy.special.kl_div`).
    """
    from scipy.special import kl_div

    # An exact 0 of a low precision is a number too small for it, not an impossible class of infinite cost.
    least = np.where(x > 0, float(np.finfo(np.float32).tiny), 0.0)
    found: Floats = kl_div(x, np.maximum(y, least)).sum(axis=1)
    return found


def _softmax_divergence(x: Floats, y: Floats) -> Floats:
    """The Kullback-Leibler divergence of the softmax of each row."""
    from scipy.special import log_softmax

    p, q = log_softmax(x, axis=1), log_softmax(y, axis=1)
    # Its own sum may be below 0 by rounding alone.
    found: Floats = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return found
