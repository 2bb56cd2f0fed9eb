"""Decisions that class scores express: one class per sample, or a yes or no per class.

Touches: nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.by_class import classification
from trtopt.compare.measures.decisions import Decisions
from trtopt.compare.measures.outputs import Floats
from trtopt.types import Classification

_HARDLY = 0.2
"""Change of a probability near 0.5 that is the noise of a borderline decision."""


@dataclass(slots=True)
class Choices:
    """The chosen classes of all comparable samples.

    Attributes:
        agree: 1 per sample if both models chose the same class, and 0 otherwise.
        right: the model that is right per sample: FP32 (1), the candidate (2), both (3) or neither (0).
        decisions: the classes that FP32 chose, and those that the candidate chose as well.
        right_decisions: those of them on which FP32 is right.
        hits_of_yes: number of samples with the label 1 on which FP32 chose class 1.
        labels: the label per sample, if there are labels.
        fp32: the class that FP32 chose per labelled sample.
        candidate: the class that the candidate chose per labelled sample.
    """

    agree: bytearray = field(default_factory=bytearray)
    right: bytearray = field(default_factory=bytearray)
    decisions: Decisions = field(default_factory=Decisions)
    right_decisions: Decisions = field(default_factory=Decisions)
    hits_of_yes: int = 0
    labels: array[int] = field(default_factory=lambda: array("i"))
    fp32: array[int] = field(default_factory=lambda: array("i"))
    candidate: array[int] = field(default_factory=lambda: array("i"))

    def add(
        self, reference: npt.NDArray[np.intp], candidate: npt.NDArray[np.intp], labels: npt.NDArray[np.int64] | None
    ) -> None:
        """Add FP32's and the candidate's classes, and the labels if there are any; all are [n]."""
        self.agree.extend((reference == candidate).astype(np.uint8))
        self.decisions.add_single(reference, reference == candidate)
        if labels is not None:
            known = reference == labels
            self.right_decisions.add_single(reference[known], (reference == candidate)[known])
            self.right.extend(((reference == labels) + 2 * (candidate == labels)).astype(np.uint8))
            for kept, added in ((self.labels, labels), (self.fp32, reference), (self.candidate, candidate)):
                kept.extend(added.tolist())
            self.hits_of_yes += int(np.count_nonzero((labels == 1) & (reference == 1)))

    def chosen(self) -> int:
        """Return the number of distinct classes that FP32 chose."""
        return int(np.count_nonzero(self.decisions.seen))

    def hits(self) -> int:
        """Return the number of samples on which FP32 is right."""
        return self.right.count(1) + self.right.count(3)

    def by_class(self, names: Mapping[int, str]) -> Classification:
        """Return the accuracy by class, and the mistakes; `names` are those of classes, as far as they are known."""
        return classification(self.labels, self.fp32, self.candidate, names)


def add_yes_or_no(decisions: Decisions, x: Floats, y: Floats) -> None:
    """Add a decision per class to those of each sample, given the probabilities [n, classes] of FP32 and the candidate.

    A class that does not apply is one of its own, the last. A decision is kept if the probability stays on its side of
    0.5 or hardly changes.
    """
    classes = np.where(x > 0.5, np.arange(x.shape[1]), x.shape[1])
    kept = ((x > 0.5) == (y > 0.5)) | (np.abs(x - y) <= _HARDLY)
    for row, fine in zip(classes, kept, strict=True):
        decisions.add(row, fine)


def sigmoid(logits: Floats) -> Floats:
    """Return the sigmoid of the logits."""
    from scipy.special import expit

    probabilities: Floats = expit(logits)
    return probabilities
