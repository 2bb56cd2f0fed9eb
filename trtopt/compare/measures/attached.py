"""Outputs with a row per box (masks, keypoints): compared where the boxes match.

Row i of one model need not be the box of row i of the other model, so a row is compared with that of the matching box.
The masks of matching boxes differ more than other outputs, because the boxes differ. They are therefore measured by R2
over all of them (see `Explained`), which is 0 for masks that say nothing about their box. Points must also be better
than the middle of their box.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from trtopt.compare.measures.explained import Explained
from trtopt.compare.measures.outputs import Array, Floats

_POINT = (2, 3, 4)
"""Numbers per point: two coordinates, depth, and a score or a visibility."""


class Attached:
    """Accumulator of the rows of matching boxes, per output."""

    def __init__(self, names: Iterable[str]) -> None:
        self._explained = {name: Explained() for name in names}
        # Sums of the squares of FP32's values and of the errors, for an output that is the same for each box.
        self._squares = {name: np.zeros(2) for name in self._explained}

    def add(self, name: str, reference: Array, candidate: Array, corners: Floats) -> None:
        """Add the rows of a box in both models, and FP32's corners of the box [4].

        A row that is not finite in FP32 is left out.
        """
        x, y = (np.asarray(row, np.float64) for row in (reference, candidate))
        if x.shape != y.shape:
            y = np.full(x.shape, np.nan)
        if not np.isfinite(x).all():
            return
        with np.errstate(over="ignore", invalid="ignore"):
            self._squares[name] += [np.square(x).sum(), np.square(x - y).sum()]
        if np.isfinite(y).all():
            self._explained[name].add(x, y, _middles(x, corners))

    def values(self) -> dict[str, float]:
        """Return the lowest R2 of the outputs; NaN if a row of the candidate is not finite."""
        found = [self._r2(name) for name, (signal, error) in self._squares.items() if signal or error]
        return {"attached": float(np.min(found))} if found else {}  # np.min keeps a NaN

    def _r2(self, name: str) -> float:
        signal, error = self._squares[name].tolist()
        if not math.isfinite(signal + error):
            return math.nan
        r2 = self._explained[name].r2()
        if r2 is not None:
            return r2
        return 1.0 - error / signal if signal else -math.inf


def _middles(points: Floats, corners: Floats) -> dict[str, Floats]:
    """Return the points [..., 2 or more] at the middle of the box, as x and y or as y and x; none for other shapes."""
    if points.ndim != 2 or points.shape[1] not in _POINT:
        return {}
    middle = (corners[:2] + corners[2:]) / 2
    guesses = {name: points.copy() for name in ("x, y", "y, x")}
    guesses["x, y"][:, :2], guesses["y, x"][:, :2] = middle, middle[::-1]
    return guesses
