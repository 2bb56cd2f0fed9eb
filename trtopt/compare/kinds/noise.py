"""The errors of an output of floating-point numbers, value by value, over all samples.

Touches: nothing.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trtopt.compare.kinds.outputs import Floats, Rows
from trtopt.compare.kinds.worst import first_bad, noisiest
from trtopt.types import Spread, WorstSample

_SPREAD_DB = (-20.0, 160.0)
_SPREAD_BINS = 90
"""Bins of 2 dB; what lies outside is counted in the outermost."""


@dataclass(slots=True)
class Noise:
    """Accumulates the errors. A sample with a NaN or Inf is in `bad`, in `bad_fp32` too when FP32 is the one that gave
    it, and in no mean. For all other samples, in order, `good` are their indices and `noise` the error energy relative
    to the signal energy. `least_cosine` is that of the sample that is turned the farthest.
    """

    bad: array[int] = field(default_factory=lambda: array("q"))
    bad_fp32: int = 0
    good: array[int] = field(default_factory=lambda: array("q"))
    noise: array[float] = field(default_factory=lambda: array("d"))
    least_cosine: float = 1.0
    _elements: int = 0
    _largest: float = 0.0
    _sums: Floats = field(default_factory=lambda: np.zeros(5))

    def add(self, rows: Rows) -> None:
        """Take the rows of one batch."""
        self.bad_fp32 += int(np.count_nonzero(~rows.finite_fp32))
        self.bad.extend(rows.indices[i] for i in np.flatnonzero(~rows.finite))
        good = rows.finite
        if not rows.x.shape[1] or not good.any():
            return
        self.good.extend(rows.indices[i] for i in np.flatnonzero(good))
        signal, error, energy = rows.signal[good], rows.error[good], rows.energy[good]
        with np.errstate(all="ignore"):  # what overflowed is NaN or Inf from here on, and fails every gate
            parts = np.stack([signal, error, rows.absolute[good], rows.product[good], energy], axis=1)
            self._sums = summed(self._sums, parts)
            noise = np.where(signal != 0, error / signal, np.where(error > 0, np.inf, 0.0))
            cosine = rows.product[good] / np.sqrt(signal) / np.sqrt(energy)
        self._elements += int(good.sum()) * rows.x.shape[1]
        self._largest = max(self._largest, float(rows.largest[good].max()))
        self.noise.extend(np.where(np.isnan(noise), np.inf, noise).tolist())
        empty = (signal == 0) | (energy == 0)
        least = np.clip(np.where(empty, error == 0, cosine), -1.0, 1.0).min()
        self.least_cosine = float(np.minimum(self.least_cosine, least))  # np.minimum: a NaN stays

    def values(self) -> dict[str, float]:
        """The errors over all samples, by the names of the catalog; only the number of bad samples where no sample is
        good.
        """
        found: dict[str, float] = {}
        if self._elements:
            signal, error, absolute, product, energy = self._sums.tolist()
            found["cosine"] = _similarity(signal, error, product, energy)
            found["sqnr"] = _decibel(signal, error)
            found["rmse"] = math.sqrt(error / self._elements)
            found["max_abs"] = self._largest
            found["mean_abs"] = absolute / self._elements
        return found | {"nonfinite": float(len(self.bad))}

    @property
    def relative(self) -> float:
        """RMS of the error over RMS of FP32's values."""
        signal, error = self._sums.tolist()[:2]
        return math.sqrt(error / signal) if signal else math.inf if error else 0.0

    def first_bad(self, ids: Sequence[str]) -> str:
        """Name the first sample with a NaN or Inf."""
        return first_bad(self.bad, self.bad_fp32, ids)

    def spread(self) -> Spread | None:
        """The histogram of the SQNR of single samples in dB, identical ones left out."""
        noise = np.frombuffer(self.noise, np.float64)
        decibels = np.clip(-10.0 * np.log10(noise[noise > 0]), *_SPREAD_DB) if noise.size else noise
        if not decibels.size:
            return None
        edges = np.linspace(*_SPREAD_DB, _SPREAD_BINS + 1)
        counts, _ = np.histogram(decibels, edges)
        used = np.flatnonzero(counts)
        first, last = int(used[0]), int(used[-1]) + 1
        return Spread(edges=tuple(edges[first : last + 1].tolist()), counts=tuple(counts[first:last].tolist()))

    def worst(self, ids: Sequence[str], note: Callable[[int], str]) -> tuple[WorstSample, ...]:
        """The samples with the most noise, the worst first, those without any left out; `note(i)` is said of the i-th
        good sample.
        """
        return noisiest(self.noise, self.good, ids, note)


def summed(total: Floats, parts: Floats) -> Floats:
    """`total` plus every row of `parts`, one after the other: the last bit does not depend on how rows are batched."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: Floats = np.cumsum(np.concatenate([total[None], parts]), axis=0)[-1]
    return result


def _similarity(signal: float, error: float, product: float, energy: float) -> float:
    if not signal or not energy:  # two zero vectors point the same way, a zero and another do not
        return float(not error)
    # NaN where the sums overflowed: it fails every gate. Written so that min and max keep it.
    cosine = product / math.sqrt(signal) / math.sqrt(energy)
    return cosine if math.isnan(cosine) else min(1.0, max(-1.0, cosine))


def _decibel(signal: float, error: float) -> float:
    if not error:
        return math.inf
    return 10.0 * (math.log10(signal) - math.log10(error)) if signal else -math.inf
