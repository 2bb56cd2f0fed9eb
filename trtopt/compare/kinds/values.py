"""Floating-point outputs without further structure: regressions, embeddings, feature maps; 8-bit images.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtopt.compare.kinds import Opening
from trtopt.compare.measures.decisions import Decisions
from trtopt.compare.measures.explained import Explained
from trtopt.compare.measures.noise import MEASURED, Noise
from trtopt.compare.measures.outputs import Array, Outputs, is_float, is_image, is_softmax
from trtopt.compare.measures.parts import Part, Parts
from trtopt.types import OutputDrift
from trtopt.wording import counted

TAKES = "numbers of any shape"
PLAIN = True
METRICS = (*MEASURED, "cosine_min", "cosine_part", "r2", "positions", "recall", "relative", "sqnr_part")

_SHOWN = 4


class Values:
    """Accumulator of the quantization error over all samples, per sample and per part, and of r2."""

    reads: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.noise = Noise()
        self.parts = Parts()
        self.explained = Explained()
        self._lost: list[int] = []
        # A sequence of class scores, [positions, classes] per sample: how many positions have FP32's class.
        self._softmax_or_logits = True
        self._rows = self._agreeing = 0
        self._decisions = Decisions()

    @property
    def note(self) -> str:
        """Remark on parts of different scale, and on samples with another number of rows."""
        notes = [self._about_parts(self.parts.found())] if self.parts.found() else []
        if self._lost:
            lost = f"{counted(len(self._lost), 'sample')}, which count as entirely wrong"
            notes.append(
                f"{self.name} has another number of rows than FP32 in {lost}; "
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
            if not (np.isfinite(rows.signal[i]) and np.isfinite(rows.energy[i])):  # the squares overflowed
                continue
            x, y = reference[i], candidate[i]
            if np.isinf(x).any():  # both models share them, for values that are ruled out; they have no scale
                x, y = (np.where(np.isinf(x), 0, values) for values in (x, y))
            self.parts.add(x, y)
            self._add_positions(x, y)
            inputs = {name: array[i] for name, array in zip(batch.inputs, fed, strict=True) if i < len(array)}
            self.explained.add(x, y, inputs)

    def _add_positions(self, x: Array, y: Array) -> None:
        """Count the positions at which both models choose the same class, if x [positions, classes] holds scores."""
        if x.ndim != 2 or x.shape[1] < 2:
            self._softmax_or_logits = False
        if not self._softmax_or_logits or not x.size:
            return
        self._softmax_or_logits = "logit" in self.name.lower() or is_softmax(x, axis=1)
        self._rows += len(x)
        best = x.argmax(axis=1)
        agreeing = best == y.argmax(axis=1)
        self._agreeing += int(np.count_nonzero(agreeing))
        self._decisions.add(best, agreeing)

    def _add_lost(self, batch: Outputs) -> None:
        """Add samples with another number of rows, which count as entirely wrong."""
        reference, candidate = (_samples(outputs[self.name], batch) for outputs in (batch.reference, batch.candidate))
        for index, x, y in zip(batch.indices, reference, candidate, strict=True):
            energies = [float(np.square(values[np.isfinite(values)].astype(np.float64)).sum()) for values in (x, y)]
            self.noise.add_lost(index, *energies)
            self._lost.append(index)

    def fits(self) -> bool:
        """Return True: any numbers can be compared."""
        return True

    def suspects(self, count: int) -> set[int]:
        """Return the indices of the samples with the lowest SQNR."""
        return self.noise.suspects(count)

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the metrics.

        `cosine_part` and `sqnr_part` exist only if there are parts, `r2` only if the output varies, and `positions`
        and `recall` only for class scores [n, positions, classes].
        """
        values = self.noise.values()
        counts = {"harmless": 1} if self.explained.harmless else {}
        if "cosine" in values:
            values |= {"cosine_min": self.noise.least_cosine, "relative": self.noise.relative}
            if parts := self.parts.found():
                values["cosine_part"] = float(np.min([part.cosine for part in parts]))  # np.min keeps a NaN
            if (sqnr := self.parts.least_sqnr()) is not None:
                values["sqnr_part"] = sqnr
            if (r2 := self.explained.r2()) is not None:
                values["r2"] = r2
            if self._softmax_or_logits and self._rows:
                values["positions"] = 100.0 * self._agreeing / self._rows
                values |= self._decisions.values()
                counts |= self._decisions.counts()
        return OutputDrift(
            output=self.name,
            kind="values",
            values=values,
            counts=counts,
            first_bad=self.noise.first_bad(ids),
            spread=self.noise.spread(),
            worst=self.noise.worst(ids, lambda _: ""),
        )

    def _about_parts(self, parts: Sequence[Part]) -> str:
        head = next((part for part in parts if part.channels == (0, 1, 2, 3)), None)
        like = " (boxes, and class scores, of a raw detection head?)" if head is not None else ""
        listed = "; ".join(f"channels {part} of axis {part.axis}: {part.cosine:.4f}" for part in parts[:_SHOWN])
        more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return f"{self.name} has parts of different scale{like}, each compared separately: cosine {listed}{more}"


def reader(opening: Opening) -> Values | None:
    """Return a reader of a floating-point output or of 8-bit images; of any integers if the user named this kind."""
    array = opening.first.reference[opening.name]
    numbers = is_float(array) or is_image(array) or (opening.asked and array.dtype.kind in "iub")
    return Values(opening.name) if numbers else None


def _samples(array: Array, batch: Outputs) -> Sequence[Array]:
    """Return the array of each sample; the output of a sample that was fed alone may lack a batch axis."""
    if array.shape[:1] == (len(batch.indices),):
        return list(array)
    return [array]
