"""Class scores, one vector per sample: the chosen class, and with labels who is right.

One number per sample, `[n]` or `[n, 1]`, is the score of a yes-or-no question: a probability, yes above 0.5, or the
argument of a sigmoid, yes above 0.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trtopt.compare.kinds import Opening
from trtopt.compare.kinds.noise import Noise, summed
from trtopt.compare.kinds.outputs import TOLERANCE, Array, Floats, Mask, Outputs, are_probabilities, is_float
from trtopt.types import OutputDrift

TAKES = "one vector of numbers per sample, [n, classes] or [n, classes, 1, 1], or one number, [n] or [n, 1]"
PLAIN = False

TOP5_CLASSES = 10
"""With fewer classes, the candidate's top 5 holds the baseline's choice too easily to mean anything."""

_LARGE = 1e300

_NAMES = re.compile(r"logit|score|prob|class|softmax")
_YES_OR_NO = re.compile(r"sigmoid|prob|logit")
"""A name that says of a single number that it answers a question; a score alone may be a rating."""


@dataclass(slots=True)
class _Choices:
    """The chosen classes of all samples that could be compared, in order.

    `agree` tells whether both models chose the same class; `right` who was right: FP32 (1), the candidate (2), both
    (3). `chosen` are the classes that FP32 chose at all.
    """

    agree: bytearray = field(default_factory=bytearray)
    right: bytearray = field(default_factory=bytearray)
    chosen: set[int] = field(default_factory=set)

    def add(
        self, best: npt.NDArray[np.intp], other: npt.NDArray[np.intp], labels: npt.NDArray[np.int64] | None
    ) -> None:
        """Add FP32's classes, the candidate's, and the labels if there are any."""
        self.agree.extend((best == other).astype(np.uint8))
        self.chosen.update(np.unique(best).tolist())
        if labels is not None:
            self.right.extend(((best == labels) + 2 * (other == labels)).astype(np.uint8))

    def hits(self) -> int:
        """Return the number of samples that FP32 is right on."""
        return self.right.count(1) + self.right.count(3)


class Scores:
    """Agreement and accuracy, and errors value by value."""

    reads: tuple[str, ...] = ()
    note = ""

    def __init__(self, opening: Opening, classes: int) -> None:
        self.name = opening.name
        self.noise = Noise()
        self._asked = opening.asked
        names = _YES_OR_NO if classes == 1 else _NAMES
        self._named = names.search(opening.name.lower()) is not None
        self._classes = classes
        # Of one number per sample the threshold is 0.5 or 0: which it is, only all samples tell, so both are counted.
        self._choices = {0.5: _Choices(), 0.0: _Choices()} if classes == 1 else {0.0: _Choices()}
        self._softmax = True
        self._probabilities = True
        self._in_range = True
        self._top5 = 0
        self._yes = 0
        # Divergence of the scores as they are, and of their softmax: which of the two, only all samples tell.
        self._divergence = np.zeros(2)

    def add(self, batch: Outputs) -> None:
        """Add one batch."""
        rows = batch.rows(self.name)
        if _classes(batch, self.name) != self._classes:
            self._classes = 0  # vectors of another length are not scores of the same classes
        if not self._classes:
            return
        self.noise.add(rows)
        if rows.comparable.any():
            labels = None if batch.labels is None else np.asarray(batch.labels)[rows.comparable]
            self._add(_good(rows.x, rows.comparable), _good(rows.y, rows.comparable), labels)

    def _add(self, x: Floats, y: Floats, labels: npt.NDArray[np.int64] | None) -> None:
        self._probabilities = self._probabilities and are_probabilities(x)
        if labels is not None:
            self._in_range &= bool(((labels >= 0) & (labels < max(self._classes, 2))).all())
            self._yes += int((labels == 1).sum())
        if self._classes == 1:
            for threshold, choices in self._choices.items():
                best, other = ((scores[:, 0] > threshold).astype(np.intp) for scores in (x, y))
                choices.add(best, other, labels)
            return
        self._softmax = self._softmax and self._probabilities and bool(np.allclose(x.sum(axis=1), 1.0, atol=TOLERANCE))
        best, other = x.argmax(axis=1), y.argmax(axis=1)
        self._choices[0.0].add(best, other, labels)
        # The rank of FP32's class in a stable sort of the candidate's: ties go to the lower index, as with argmax.
        score = np.take_along_axis(y, best[:, None], axis=1)
        before = (y > score) | ((y == score) & (np.arange(self._classes) < best[:, None]))
        self._top5 += int(np.count_nonzero(before.sum(axis=1) < 5))
        as_is = _divergence(x, y) if self._softmax else np.zeros(len(x))
        self._divergence = summed(self._divergence, np.stack([as_is, _softmax_divergence(x, y)], axis=1))

    @property
    def _counted(self) -> _Choices:
        return self._choices[0.5 if self._classes == 1 and self._probabilities else 0.0]

    def fits(self) -> bool:
        """Return whether these are scores.

        They are if the user or the name says so, if every vector of FP32 is a softmax (non-negative, sum 1), or if the
        labels fit.
        """
        if not self._classes:
            return False
        if self._asked or self.labels_fit:
            return True
        if self._classes == 1:
            return self._named and (self._probabilities or "logit" in self.name.lower())
        return self._named or (self._softmax and bool(self._counted.agree))

    @property
    def labels_fit(self) -> bool:
        """Whether the labels are those of this output: in range, and FP32 beats guessing.

        An output that holds something else (an embedding beside the logits), or labels numbered in another way, would
        give FP32 and any candidate the same accuracy near zero, and a gate on its drop would pass whatever happened.
        Guessing among c classes is right on n/c of n samples, with a standard deviation of sqrt(n (1/c) (1 - 1/c));
        FP32 must be two of them above it, or right every time. Of one number per sample, guessing always says what most
        labels are.
        """
        choices = self._counted
        if not choices.right or not self._in_range or not self._classes:
            return False
        count, hits = len(choices.right), choices.hits()
        most = max(self._yes, count - self._yes) / count
        chance = most if self._classes == 1 else 1.0 / self._classes
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
        choices = self._counted
        if not choices.agree:
            return {}
        counts = {"samples": len(choices.agree), "agree": choices.agree.count(1), "chosen": len(choices.chosen)}
        if self._classes >= TOP5_CLASSES:
            counts["top5"] = self._top5
        if self.labels_fit:
            sides = ((3, "both"), (1, "only_fp32"), (2, "only_candidate"))
            counts |= {name: choices.right.count(who) for who, name in sides}
        elif choices.right:
            counts["unfit"] = choices.hits()
        return counts

    def _values(self) -> dict[str, float]:
        counts, values = self._counts(), {}
        if counts:
            samples = counts["samples"]
            if "both" in counts:
                values["accuracy_fp32"] = 100.0 * (counts["both"] + counts["only_fp32"]) / samples
                values["accuracy"] = 100.0 * (counts["both"] + counts["only_candidate"]) / samples
            values["top1"] = 100.0 * counts["agree"] / samples
            if "top5" in counts:
                values["top5"] = 100.0 * counts["top5"] / samples
            if self._classes > 1:
                values["kl"] = float(self._divergence[0 if self._softmax else 1]) / samples
        return values | self.noise.values()

    def _story(self, place: int) -> str:
        choices = self._counted
        who = ("both wrong", "only FP32 right", "only the candidate right", "both right")
        same = "same class" if choices.agree[place] else "another class than FP32"
        return f"{same}, {who[choices.right[place]]}" if self.labels_fit else same


def reader(opening: Opening) -> Scores | None:
    """Return a reader of one vector of floats, or one float, per sample."""
    classes = _classes(opening.first, opening.name)
    if not classes or not (opening.asked or is_float(opening.first.reference[opening.name])):
        return None
    return Scores(opening, classes)


def _classes(batch: Outputs, name: str) -> int:
    """Return the length of the vectors, or 0 where the output is not one vector or number per sample."""
    shape = batch.reference[name].shape
    vectors = shape[:1] == (len(batch.indices),) and sum(size > 1 for size in shape[1:]) <= 1
    return math.prod(shape[1:]) if vectors else 0


def _good(array: Array, comparable: Mask) -> Floats:
    return array[comparable].astype(np.float64)


def _divergence(x: Floats, y: Floats) -> Floats:
    """Return sum(x log(x / y) - x + y) of each row.

    That is the Kullback-Leibler divergence where both sum to 1, and is never negative where rounding keeps them from it
    (`scipy.special.kl_div`).
    """
    from scipy.special import kl_div

    # An exact 0 of a low precision is a number too small for it, not an impossible class of infinite cost.
    least = np.where(x > 0, float(np.finfo(np.float32).tiny), 0.0)
    divergence: Floats = kl_div(np.maximum(x, 0.0), np.maximum(y, least)).sum(axis=1)
    return divergence


def _softmax_divergence(x: Floats, y: Floats) -> Floats:
    """Return the Kullback-Leibler divergence of the softmax of each row."""
    from scipy.special import log_softmax

    # Infinities that both models share (a class that is out of the question) stay comparable as large numbers.
    p, q = (log_softmax(np.clip(scores, -_LARGE, _LARGE), axis=1) for scores in (x, y))
    # The sum may be below 0 by rounding alone.
    divergence: Floats = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return divergence
