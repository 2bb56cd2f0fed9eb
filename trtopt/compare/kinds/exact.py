"""Integers, booleans and text, compared exactly.

Touches: nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from trtopt.compare.kinds import Opening
from trtopt.compare.kinds.outputs import Outputs, is_float
from trtopt.compare.kinds.worst import first_bad, worst
from trtopt.types import OutputDrift

TAKES = "anything of any shape"
PLAIN = True


class Exact:
    """Counts, for each sample, how many of its elements differ."""

    reads: tuple[str, ...] = ()
    note = ""

    def __init__(self, name: str, *, floats: bool) -> None:
        self.name = name
        self._floats = floats
        self._indices = array("q")
        self._differing = array("q")
        self._sizes = array("q")
        self._bad = array("q")
        self._bad_fp32 = 0

    def add(self, batch: Outputs) -> None:
        """Take one batch."""
        reference, candidate = batch.both(self.name)
        count = len(batch.indices)
        differs = np.asarray(reference != candidate, np.bool_).reshape(count, reference.size // count)
        self._indices.extend(batch.indices)
        self._differing.extend(np.count_nonzero(differs, axis=1).tolist())
        self._sizes.extend([differs.shape[1]] * count)
        if self._floats:
            rows = batch.rows(self.name)
            self._bad.extend(batch.indices[i] for i in np.flatnonzero(~rows.finite))
            self._bad_fp32 += int(np.count_nonzero(~rows.finite_fp32))

    def fits(self) -> bool:
        """Whatever the elements are."""
        return True

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the share of equal elements, and the samples that have others."""
        elements = sum(self._sizes)
        values = {"equal": 100.0 * (elements - sum(self._differing)) / elements} if elements else {}
        if self._floats:
            values["nonfinite"] = float(len(self._bad))
        return OutputDrift(
            output=self.name,
            kind="exact",
            values=values,
            first_bad=first_bad(self._bad, self._bad_fp32, ids),
            worst=worst(
                self._differing, self._indices, ids, lambda i: f"{self._differing[i]} of {self._sizes[i]} differ"
            ),
        )


def reader(opening: Opening) -> Exact | None:
    """Read what is not of a floating-point type, and that where the user asks for it."""
    floats = is_float(opening.first.reference[opening.name])
    return Exact(opening.name, floats=floats) if opening.asked or not floats else None
