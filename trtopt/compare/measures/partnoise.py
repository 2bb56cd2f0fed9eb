"""SQNR of each part of an output per sample: a part that is lost in one sample hides in the sum over all samples.

Touches: nothing.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.outputs import Floats

Group = npt.NDArray[np.intp]
"""Indices of the channels of a part."""

_SETTLING = 16
"""The parts are those of the first samples, so that later samples need a few bytes each."""

_QUIET = 0.25
"""The error of a quiet sample is divided by at least this fraction of the mean signal energy."""


class PartNoise:
    """Accumulator of the signal and the error of each part per sample.

    Args:
        split: returns the parts as they are so far, the largest signal first.
    """

    def __init__(self, split: Callable[[], Sequence[Group]]) -> None:
        self._split = split
        self._waiting: list[Floats] = []
        self._groups: list[Group] | None = None
        self._signal: list[array[float]] = []
        self._error: list[array[float]] = []

    def add(self, sums: Floats) -> None:
        """Add the sums of squares of one sample's signal and error, [2, channels]."""
        if self._groups is not None:
            self._take(sums)
            return
        self._waiting.append(sums)
        if len(self._waiting) == _SETTLING:
            self._settle()

    def ratios(self) -> list[tuple[Group, float]]:
        """Return the highest ratio of error to signal energy of a sample, in each part but the largest."""
        if self._groups is None:
            self._settle()
        groups = self._groups or []
        found = zip(groups, self._signal, self._error, strict=True)
        return [(group, _highest(np.array(signal), np.array(error))) for group, signal, error in found]

    def _settle(self) -> None:
        """Fix the parts. A channel without a signal so far belongs to the part of the smallest signal."""
        groups = list(self._split())
        if self._waiting and groups:
            silent = np.setdiff1d(np.arange(self._waiting[0].shape[1]), np.concatenate(groups))
            groups[-1] = np.concatenate([groups[-1], silent])
        self._groups = groups[1:]
        self._signal, self._error = ([array("d") for _ in self._groups] for _ in range(2))
        for sums in self._waiting:
            self._take(sums)
        self._waiting = []

    def _take(self, sums: Floats) -> None:
        for group, signal, error in zip(self._groups or (), self._signal, self._error, strict=True):
            signal.append(float(sums[0, group].sum()))
            error.append(float(sums[1, group].sum()))


def _highest(signal: Floats, error: Floats) -> float:
    """Return the highest ratio of error to signal; 0 for a part without a signal."""
    level = np.maximum(signal, _QUIET * signal.mean()) if signal.size else signal
    if not level.any():
        return 0.0
    highest = float((error / level).max())
    return highest if not math.isnan(highest) else math.inf
