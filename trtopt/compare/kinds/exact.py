"""Integers, booleans and text, compared for equality.

Touches: nothing.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from trtopt.compare.kinds import Opening
from trtopt.compare.measures.decisions import Classes, Decisions
from trtopt.compare.measures.outputs import Array, Outputs, is_float, is_image
from trtopt.compare.measures.worst import first_bad, suspects, worst
from trtopt.types import OutputDrift

TAKES = "anything of any shape"
PLAIN = True
METRICS = ("equal", "same", "recall", "nonfinite")

_NUMBERED = 1 << 16
"""Integers below this number are counted by value, and as many other values. The rest is counted as one value."""


class Exact:
    """Counts of differing elements per sample.

    If the models return different numbers of rows (as after non-maximum suppression), equal rows are matched in any
    order, and rows without a match count as different.
    """

    reads: tuple[str, ...] = ()
    note = ""

    def __init__(self, name: str, *, floats: bool) -> None:
        self.name = name
        self._floats = floats
        self._decisions = Decisions()
        self._others: dict[object, int] = {}
        self._indices = array("q")
        self._differing = array("q")
        self._sizes = array("q")
        self._bad = array("q")
        self._bad_fp32 = 0

    def add(self, batch: Outputs) -> None:
        """Add one batch."""
        count = len(batch.indices)
        if batch.differs_in_rows(self.name):
            pairs = [(batch.reference[self.name], batch.candidate[self.name])]
            if count > 1 or pairs[0][0].shape[:1] == pairs[0][1].shape[:1] == (1,):
                pairs = list(zip(*pairs[0], strict=True))
            for index, (x, y) in zip(batch.indices, pairs, strict=True):
                self._add_rows(index, x, y)
            return
        reference, candidate = batch.both(self.name)
        differs = np.asarray(reference != candidate, np.bool_).reshape(count, reference.size // count)
        self._indices.extend(batch.indices)
        self._differing.extend(np.count_nonzero(differs, axis=1).tolist())
        self._sizes.extend([differs.shape[1]] * count)
        for x, different in zip(reference.reshape(differs.shape), differs, strict=True):
            self._decisions.add(self._numbered(x), ~different)
        if self._floats:
            rows = batch.rows(self.name)
            self._bad.extend(batch.indices[i] for i in np.flatnonzero(~rows.comparable))
            self._bad_fp32 += int(np.count_nonzero(~rows.comparable_fp32))

    def _numbered(self, values: Array) -> Classes:
        """Return the values as classes, integers from 0: small integers as they are, others by order of appearance."""
        if values.dtype.kind in "iub" and values.size and 0 <= int(values.min()) <= int(values.max()) < _NUMBERED:
            return values.astype(np.intp)
        distinct, index = np.unique(values, return_inverse=True)
        return np.array([self._number(value) for value in distinct.tolist()], np.intp)[index]

    def _number(self, value: object) -> int:
        """Return the class of one value."""
        if isinstance(value, int) and 0 <= value < _NUMBERED:
            return value
        if value not in self._others and len(self._others) < _NUMBERED:
            self._others[value] = _NUMBERED + len(self._others)
        return self._others.get(value, 2 * _NUMBERED)

    def _add_rows(self, index: int, reference: Array, candidate: Array) -> None:
        """Add one sample, with its rows matched in any order. They are the axis of which the lengths differ."""
        axis = int(np.argmax(np.not_equal(reference.shape, candidate.shape)))
        reference, candidate = (np.moveaxis(values, axis, 0) for values in (reference, candidate))
        x, y = (Counter(map(repr, rows.tolist())) for rows in (reference, candidate))
        rows = max(x.total(), y.total())
        width = max(reference.size, candidate.size) // rows
        self._indices.append(index)
        self._differing.append((rows - (x & y).total()) * width)
        self._sizes.append(rows * width)

    def fits(self) -> bool:
        """Return True: any elements can be compared."""
        return True

    def suspects(self, count: int) -> set[int]:
        """Return the indices of the samples with the most differing elements."""
        return suspects(np.array(self._differing, np.float64), self._indices, count)

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the percentages of equal elements, per value as well, and of samples that agree.

        An empty output is equal.
        """
        elements = sum(self._sizes)
        values = {"equal": 100.0 - 100.0 * sum(self._differing) / max(elements, 1)} if self._indices else {}
        counts: dict[str, int] = {}
        if elements:
            pairs = zip(self._differing, self._sizes, strict=True)
            counts = {"samples": len(self._sizes), "same": sum(2 * differing <= size for differing, size in pairs)}
            values["same"] = 100.0 * counts["same"] / counts["samples"]
            values |= self._decisions.values()
            counts |= self._decisions.counts()
        if max(self._sizes, default=0) == 1:  # one value per sample: a class, say
            counts["chosen"] = int(np.count_nonzero(self._decisions.seen))
        if self._floats:
            values["nonfinite"] = float(len(self._bad))
        return OutputDrift(
            output=self.name,
            kind="exact",
            values=values,
            counts=counts,
            first_bad=first_bad(self._bad, self._bad_fp32, ids),
            worst=worst(
                self._differing, self._indices, ids, lambda i: f"{self._differing[i]} of {self._sizes[i]} differ"
            ),
        )


def reader(opening: Opening) -> Exact | None:
    """Return a reader of integers, booleans and text that are no image; of any output if the user named this kind."""
    array = opening.first.reference[opening.name]
    floats = is_float(array)
    return Exact(opening.name, floats=floats) if opening.asked or not (floats or is_image(array)) else None
