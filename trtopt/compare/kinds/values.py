"""Floating-point numbers of which nothing else is known: regressions, embeddings, feature maps.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtopt.compare.kinds import Opening
from trtopt.compare.kinds.explained import Explained
from trtopt.compare.kinds.noise import Noise
from trtopt.compare.kinds.outputs import Array, Outputs, is_float
from trtopt.compare.kinds.parts import Part, Parts
from trtopt.types import OutputDrift

TAKES = "numbers of any shape"
PLAIN = True

_SHOWN = 4


class Values:
    """Errors value by value: over all samples, per sample, per part, and against what varies at all."""

    reads: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.noise = Noise()
        self.parts = Parts()
        self.explained = Explained()
        self._lost: list[int] = []

    @property
    def note(self) -> str:
        """Parts of different scale, and samples with another number of rows."""
        notes = [self._about_parts(self.parts.found())] if self.parts.found() else []
        if self._lost:
            notes.append(
                f"{self.name} has another number of rows than FP32 in {len(self._lost)} samples, which count as lost; "
                f"if its rows are boxes: --kind {self.name}=detection"
            )
        return "; ".join(notes)

    def add(self, batch: Outputs) -> None:
        """Add one batch."""
        if batch.differs_in_rows(self.name):
            self._add_lost(batch)
            return
        rows = batch.rows(self.name)
        self.noise.add(rows)
        reference, candidate = (_samples(array, batch) for array in batch.both(self.name))
        fed = [_samples(array, batch) for array in batch.inputs.values()]
        for i in np.flatnonzero(rows.comparable).tolist():
            if not (np.isfinite(rows.signal[i]) and np.isfinite(rows.energy[i])):
                continue
            x, y = reference[i], candidate[i]
            if np.isinf(x).any():  # the same in both: such values are out of the question, and have no size
                x, y = (np.where(np.isinf(x), 0, values) for values in (x, y))
            self.parts.add(x, y)
            inputs = {name: array[i] for name, array in zip(batch.inputs, fed, strict=True) if i < len(array)}
            self.explained.add(x, y, inputs)

    def _add_lost(self, batch: Outputs) -> None:
        """Count samples with another number of rows as wholly different."""
        reference, candidate = (_samples(outputs[self.name], batch) for outputs in (batch.reference, batch.candidate))
        for index, x, y in zip(batch.indices, reference, candidate, strict=True):
            energies = [float(np.square(values[np.isfinite(values)].astype(np.float64)).sum()) for values in (x, y)]
            self.noise.add_lost(index, *energies)
            self._lost.append(index)

    def fits(self) -> bool:
        """Return True: any numbers do."""
        return True

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the errors; some only where they say something: `cosine_part` where there are parts, `r2` where the
        output varies.
        """
        values = self.noise.values()
        if "cosine" in values:
            values |= {"cosine_min": self.noise.least_cosine, "relative": self.noise.relative}
            if parts := self.parts.found():
                values["cosine_part"] = float(np.min([part.cosine for part in parts]))  # np.min keeps a NaN
            if (r2 := self.explained.r2()) is not None:
                values["r2"] = r2
        return OutputDrift(
            output=self.name,
            kind="values",
            values=values,
            first_bad=self.noise.first_bad(ids),
            spread=self.noise.spread(),
            worst=self.noise.worst(ids, lambda _: ""),
        )

    def _about_parts(self, parts: Sequence[Part]) -> str:
        head = next((part for part in parts if part.channels == (0, 1, 2, 3)), None)
        like = " (boxes, and class scores, of a raw detection head?)" if head is not None else ""
        listed = "; ".join(f"channels {part} of axis {part.axis}: {part.cosine:.4f}" for part in parts[:_SHOWN])
        more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return f"{self.name} has parts of different scale{like}, each compared by itself: cosine {listed}{more}"


def reader(opening: Opening) -> Values | None:
    """Return a reader of any numbers of a floating-point type, and of others where the user asks for it."""
    array = opening.first.reference[opening.name]
    return Values(opening.name) if is_float(array) or (opening.asked and array.dtype.kind in "iub") else None


def _samples(array: Array, batch: Outputs) -> Sequence[Array]:
    """Return the array of each sample; one that was fed alone may have no batch axis."""
    if array.shape[:1] == (len(batch.indices),):
        return list(array)
    return [array]
