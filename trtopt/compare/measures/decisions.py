"""Agreement per class: how many of FP32's decisions for a class the candidate keeps.

A share over all decisions hides the loss of a rare class: a tagger that finds no entity any more agrees with FP32 at
99.5 % of the positions, and a map that lost its object at 99 % of the pixels. So each class that FP32 chooses counts by
itself, and so do all classes but the most frequent one together.

Decisions of the same sample are not independent, so the number of samples that have the class is what bounds its share.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.outputs import Mask
from trtopt.compare.statistics import Bounds, simultaneous

Counts = npt.NDArray[np.int64]
Classes = npt.NDArray[np.integer]

_DENSE = 4
"""A sample's classes are counted in a table if it has at most so many entries per decision; else they are sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """FP32's decisions for one class, or (`label` -1) for all classes but the most frequent one.

    `samples` is the number of samples that have such a decision.
    """

    label: int
    decisions: int
    kept: int
    samples: int

    def bound(self, groups: int) -> float:
        """Return the lower bound of the share of decisions that is lost, if this is one of several groups."""
        return lost(self.decisions, self.kept, self.samples, groups).low


def lost(decisions: int, kept: int, samples: int, groups: int) -> Bounds:
    """Return the share of decisions that is lost, with bounds that hold for all groups together.

    Raises:
        ValueError: the counts contradict each other.
    """
    if not 0 <= kept <= decisions:
        raise ValueError(f"{kept} of {decisions} decisions")
    return simultaneous(samples * (decisions - kept) / max(decisions, 1), samples, groups)


class Decisions:
    """Accumulator of FP32's decisions by class; classes are integers from 0.

    Attributes:
        seen: FP32's decisions for each class, [classes].
        kept: those that the candidate keeps, [classes].
    """

    def __init__(self) -> None:
        self.seen: Counts = np.zeros(0, np.int64)
        self.kept: Counts = np.zeros(0, np.int64)
        # Samples that have a decision for the class, and samples that have no other decision.
        self._having: Counts = np.zeros(0, np.int64)
        self._alone: Counts = np.zeros(0, np.int64)
        self._samples = 0

    def add(self, classes: Classes, kept: Mask) -> None:
        """Add one sample: the class of each of FP32's decisions [k], and whether the candidate keeps it [k]."""
        if not classes.size:
            return
        chosen, counts = _counted(classes)
        self._grow(int(chosen[-1]) + 1)
        self.seen[chosen] += counts
        self._having[chosen] += 1
        self._alone[chosen] += len(chosen) == 1
        self._samples += 1
        if kept.any():
            chosen, counts = _counted(classes[kept])
            self.kept[chosen] += counts

    def add_single(self, classes: Classes, kept: Mask) -> None:
        """Add samples with one decision each: its class [n], and whether the candidate keeps it [n]."""
        if not classes.size:
            return
        size = max(int(classes.max()) + 1, len(self.seen))
        self._grow(size)
        counts = np.bincount(classes, minlength=size)
        for total in (self.seen, self._having, self._alone):
            total += counts
        self._samples += len(classes)
        self.kept += np.bincount(classes[kept], minlength=size)

    def values(self) -> dict[str, float]:
        """Return the percentage of decisions that the candidate keeps in the class with the clearest loss.

        It exists only if FP32 chooses two classes or more.
        """
        worst = self._worst()
        return {} if worst is None else {"recall": 100.0 * worst.kept / worst.decisions}

    def counts(self) -> dict[str, int]:
        """Return the counts behind `values`, see `OutputDrift.counts`."""
        worst = self._worst()
        if worst is None:
            return {}
        counts = {"decisions": worst.decisions, "kept": worst.kept, "having": worst.samples}
        counts["groups"] = len(self._groups())
        return counts | ({"class": worst.label} if worst.label >= 0 else {})

    @property
    def loss(self) -> float:
        """The lower bound of the share of decisions that is lost in the class with the clearest loss."""
        worst = self._worst()
        return worst.bound(len(self._groups())) if worst is not None else 0.0

    def _groups(self) -> list[_Group]:
        """Return the decisions by class, and those for all classes but the most frequent one; none for one class."""
        chosen = np.flatnonzero(self.seen)
        if len(chosen) < 2:
            return []
        groups = [
            _Group(label=c, decisions=int(self.seen[c]), kept=int(self.kept[c]), samples=int(self._having[c]))
            for c in chosen.tolist()
        ]
        if len(chosen) > 2:
            most = int(self.seen.argmax())
            decisions, kept = (int(total.sum() - total[most]) for total in (self.seen, self.kept))
            samples = self._samples - int(self._alone[most])
            groups.append(_Group(label=-1, decisions=decisions, kept=kept, samples=samples))
        return groups

    def _worst(self) -> _Group | None:
        """Return the group whose loss has the highest lower bound."""
        groups = self._groups()
        losing = [group for group in groups if group.kept < group.decisions] or groups[:1]
        return max(losing, key=lambda group: group.bound(len(groups)), default=None)

    def _grow(self, size: int) -> None:
        missing = size - len(self.seen)
        if missing > 0:
            self.seen, self.kept, self._having, self._alone = (
                np.pad(total, (0, missing)) for total in (self.seen, self.kept, self._having, self._alone)
            )


def _counted(classes: Classes) -> tuple[Counts, Counts]:
    """Return the distinct classes in ascending order, and how often each occurs."""
    if int(classes.max()) < _DENSE * classes.size:
        counts = np.bincount(classes).astype(np.int64)
        chosen = np.flatnonzero(counts).astype(np.int64)
        return chosen, counts[chosen]
    distinct, counts = np.unique(classes, return_counts=True)
    return distinct.astype(np.int64), counts.astype(np.int64)
