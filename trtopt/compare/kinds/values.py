"""Floating-point numbers of which nothing else is known: regressions, embeddings, feature maps.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtopt.compare.kinds import Opening
from trtopt.compare.kinds.noise import Noise
from trtopt.compare.kinds.outputs import Outputs, is_float
from trtopt.types import OutputDrift

TAKES = "numbers of any shape"
PLAIN = True


class Values:
    """Errors, value by value."""

    reads: tuple[str, ...] = ()
    note = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.noise = Noise()

    def add(self, batch: Outputs) -> None:
        """Take one batch."""
        self.noise.add(batch.rows(self.name))

    def fits(self) -> bool:
        """Whatever the numbers are."""
        return True

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the errors, and the least cosine of a single sample: what a nearest neighbour is lost by."""
        values = self.noise.values()
        if "cosine" in values:
            values |= {"cosine_min": self.noise.least_cosine, "relative": self.noise.relative}
        return OutputDrift(
            output=self.name,
            kind="values",
            values=values,
            first_bad=self.noise.first_bad(ids),
            spread=self.noise.spread(),
            worst=self.noise.worst(ids, lambda _: ""),
        )


def reader(opening: Opening) -> Values | None:
    """Read any numbers: those of a floating-point type, or others where the user asks for it."""
    array = opening.first.reference[opening.name]
    return Values(opening.name) if is_float(array) or (opening.asked and array.dtype.kind in "iub") else None
