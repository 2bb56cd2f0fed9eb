"""Quantization error of a floating-point output, value by value, over all samples.

Touches: nothing.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trtopt.compare.measures.outputs import Floats, Rows
from trtopt.compare.measures.worst import first_bad, noisiest, suspects
from trtopt.types import Spread, WorstSample

_SPREAD_DB = (-20.0, 160.0)
_SPREAD_BINS = 90
"""Number of bins, of 2 dB each. Values outside the range are counted in the outermost bins."""

_QUIET = 0.25
_SILENT = 1e-3
"""The error of a quiet sample is divided by at least these fractions of the median and of the mean signal energy."""

MEASURED = ("cosine", "sqnr", "sqnr_min", "rmse", "max_abs", "mean_abs", "nonfinite")
"""Metrics of the error of floating-point outputs."""


@dataclass(slots=True)
class Noise:
    """Accumulator of errors.

    Attributes:
        bad: indices of the samples that cannot be compared (see `Rows.comparable`). They are not part of any metric.
        bad_fp32: the number of those in which FP32 is at fault.
        good: indices of all other samples, in order.
        least_cosine: the lowest cosine of a single sample.
        largest: the largest absolute error.
    """

    bad: array[int] = field(default_factory=lambda: array("q"))
    bad_fp32: int = 0
    good: array[int] = field(default_factory=lambda: array("q"))
    least_cosine: float = 1.0
    largest: float = 0.0
    _signal: array[float] = field(default_factory=lambda: array("d"))
    _error: array[float] = field(default_factory=lambda: array("d"))
    _elements: int = 0
    _sums: Floats = field(default_factory=lambda: np.zeros(5))

    def add(self, rows: Rows) -> None:
        """Add the rows of one batch."""
        self.bad_fp32 += int(np.count_nonzero(~rows.comparable_fp32))
        self.bad.extend(rows.indices[i] for i in np.flatnonzero(~rows.comparable))
        good = rows.comparable
        if not good.any():
            return
        self.good.extend(rows.indices[i] for i in np.flatnonzero(good))
        signal, error, energy = rows.signal[good], rows.error[good], rows.energy[good]
        with np.errstate(all="ignore"):  # an overflow is NaN or Inf from here on, and fails every gate
            parts = np.stack([signal, error, rows.absolute[good], rows.product[good], energy], axis=1)
            self._sums = summed(self._sums, parts)
            cosine = rows.product[good] / np.sqrt(signal) / np.sqrt(energy)
        self._elements += int(good.sum()) * rows.x.shape[1]
        self.largest = max(self.largest, float(rows.largest[good].max()))
        self._signal.extend(signal.tolist())
        self._error.extend(error.tolist())
        empty = (signal == 0) | (energy == 0)
        least = np.clip(np.where(empty, error == 0, cosine), -1.0, 1.0).min()
        self.least_cosine = float(np.minimum(self.least_cosine, least))  # np.minimum keeps a NaN

    def add_lost(self, index: int, signal: float, energy: float) -> None:
        """Add a sample whose values have no counterpart in the other model, so all of them are error.

        `signal` is the energy of FP32's output, `energy` that of the candidate's.
        """
        error = signal + energy
        self.good.append(index)
        self._sums = summed(self._sums, np.array([[signal, error, 0.0, 0.0, energy]]))
        self._signal.append(signal)
        self._error.append(error)
        self._elements += 1
        self.least_cosine = float(np.minimum(self.least_cosine, 0.0))

    def values(self) -> dict[str, float]:
        """Return the metrics over all samples, by their names in the catalog.

        If no sample can be compared, that is only the number of bad ones. An output without elements is equal.
        """
        values: dict[str, float] = {}
        if self.good:
            signal, error, absolute, product, energy = self._sums.tolist()
            elements = max(self._elements, 1)
            values["cosine"] = similarity(signal, error, product, energy)
            values["sqnr"] = _decibel(signal, error)
            worst = float(self.noise().max())
            values["sqnr_min"] = -10.0 * math.log10(worst) if worst else math.inf
            values["rmse"] = math.sqrt(error / elements)
            values["max_abs"] = self.largest
            values["mean_abs"] = absolute / elements
        return values | {"nonfinite": float(len(self.bad))}

    def noise(self) -> Floats:
        """Return the ratio of error energy to signal energy of each comparable sample.

        For a signal close to zero the ratio is meaningless: a silent audio clip with a harmless error has an SQNR below
        0 dB. The signal energy therefore counts as at least a quarter of the median and a thousandth of the mean.
        """
        signal, error = np.frombuffer(self._signal, np.float64), np.frombuffer(self._error, np.float64)
        if not signal.size:
            return np.zeros(0)
        with np.errstate(all="ignore"):
            least = max(_QUIET * float(np.median(signal)), _SILENT * float(signal.mean()))
            level = np.maximum(signal, least)
            ratio: Floats = np.where(level > 0, error / level, np.where(error > 0, np.inf, 0.0))
        return np.where(np.isnan(ratio), np.inf, ratio)

    @property
    def relative(self) -> float:
        """RMS of the error relative to the RMS of FP32's values."""
        signal, error = self._sums.tolist()[:2]
        return math.sqrt(error / signal) if signal else math.inf if error else 0.0

    def first_bad(self, ids: Sequence[str]) -> str:
        """Return the name of the first sample that cannot be compared, or an empty string."""
        return first_bad(self.bad, self.bad_fp32, ids)

    def spread(self) -> Spread | None:
        """Return the histogram of the SQNR per sample in dB, without identical samples."""
        noise = self.noise()
        decibels = np.clip(-10.0 * np.log10(noise[noise > 0]), *_SPREAD_DB)
        if not decibels.size:
            return None
        edges = np.linspace(*_SPREAD_DB, _SPREAD_BINS + 1)
        counts, _ = np.histogram(decibels, edges)
        used = np.flatnonzero(counts)
        first, last = int(used[0]), int(used[-1]) + 1
        return Spread(edges=tuple(edges[first : last + 1].tolist()), counts=tuple(counts[first:last].tolist()))

    def worst(self, ids: Sequence[str], note: Callable[[int], str]) -> tuple[WorstSample, ...]:
        """Return the samples with the lowest SQNR, the worst first, without identical samples.

        `note(i)` returns a note on the i-th comparable sample.
        """
        return noisiest(self.noise().tolist(), self.good, ids, note)

    def suspects(self, count: int) -> set[int]:
        """Return the indices of the `count` samples with the lowest SQNR so far, without identical samples."""
        return suspects(self.noise(), self.good, count)


def summed(total: Floats, parts: Floats) -> Floats:
    """Return `total` plus every row of `parts`, added one by one so that the last bit does not depend on the batch."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: Floats = np.cumsum(np.concatenate([total[None], parts]), axis=0)[-1]
    return result


def similarity(signal: float, error: float, product: float, energy: float) -> float:
    """Return the cosine of two vectors from the sums of x^2, (x - y)^2, x y and y^2.

    It is NaN if a sum overflowed, and NaN fails every gate. The cosine of two zero vectors is 1, and that of one zero
    vector is 0.
    """
    if not signal or not energy:
        return float(not error)
    cosine = product / math.sqrt(signal) / math.sqrt(energy)
    return cosine if math.isnan(cosine) else min(1.0, max(-1.0, cosine))


def _decibel(signal: float, error: float) -> float:
    if not error:
        return math.inf
    return 10.0 * (math.log10(signal) - math.log10(error)) if signal else -math.inf
