"""One tensor's magnitudes over all samples, counted exactly, in memory that does not grow.

A float32's bit pattern, without its sign, orders magnitudes. Its top 17 bits (8 of exponent, 9 of mantissa) index the
bin, so every bin is 2**-9 of its power of two wide, from the smallest number to the largest. Nothing needs to be known
about the range before the first sample, and bins never move: counts are whole numbers, the order of samples and the
size of batches cannot change them, and two histograms merge by adding.

Touches: nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.errors import CalibrationError

BINS = 1 << 17
ZERO_BINS = 8
"""Magnitudes of the first bins are zero under every scale, and counted as such: see `Histogram`."""
ALL_ZERO_AMAX = 1.0
"""The range given to a tensor that was never anything but zero. Any scale represents zero exactly; this one stays a
normal number in every floating-point type, also after the division by 127."""

_SHIFT = 14
_INFINITY = 0x7F800000
_FLUSH_AT = 0xFFFFFFFF

_Floats = npt.NDArray[np.float64]


def largest_of(bits: int) -> float:
    """The magnitude of a float32 with these bits, 0 if it counts as zero."""
    return 0.0 if bits >> _SHIFT < ZERO_BINS else float(np.uint32(bits).view(np.float32))


class Histogram:
    """Exact counts of |x| in 2**17 logarithmic bins; `amax` and `total` are exact, too.

    Zero means: below 2**-132, the upper edge of bin 7; they are counted in bin 0. Such denormals round to zero under
    every scale, since no scale is smaller than 2**-126. The arrays are 1.5 MB of address space, but only the pages of
    bins that occur take memory. One thread at a time.
    """

    __slots__ = ("_counters", "_pending", "_top", "_totals", "total")

    def __init__(self) -> None:
        # 32-bit counters halve the footprint in the cache, which is what limits the speed; they are emptied into the
        # 64-bit totals before they can overflow.
        self._counters = np.zeros(BINS, np.uint32)
        self._totals = np.zeros(BINS, np.int64)
        self._pending = 0
        self._top = 0
        self.total = 0

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64], top: int, total: int) -> Histogram:
        """A histogram of what was counted elsewhere: `counts` [2**17], which it keeps, the bits of the largest
        magnitude, and how many elements there were.
        """
        made = cls()
        made._totals, made._top, made.total = counts, top, total
        return made

    def add(self, array: npt.NDArray[np.generic]) -> None:
        """Count every element of a float16, float32 or float64 array of any shape and layout, as float32.

        NaN and infinity (also a float64 beyond float32) are counted; `check` reports them.

        Raises:
            CalibrationError: the array holds something else than floating-point numbers.
        """
        from trtopt.calibrate import kernels

        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise CalibrationError(
                f"{array.dtype} values cannot be calibrated", why="only floating-point tensors have an INT8 scale"
            )
        if array.dtype == np.float32 and array.flags.carray:
            flat = array.reshape(-1)
        else:
            with np.errstate(over="ignore"):
                flat = np.require(array.ravel(order="K"), np.float32, ["C", "A"])
        if self._pending + flat.size > _FLUSH_AT:
            self._flush()
        self._top = max(self._top, kernels.count(flat.view(np.uint32), self._counters))
        self._pending += flat.size
        self.total += flat.size

    def _flush(self) -> None:
        used = self._used(self._counters)
        self._totals[used] += self._counters[used]
        self._counters[used] = 0
        self._pending = 0
        self._totals[0] = self._totals[:ZERO_BINS].sum()
        self._totals[1:ZERO_BINS] = 0

    def merge(self, other: Histogram) -> None:
        """Add everything that `other` counted; exact, and the same in any order."""
        used, counts = other.counts()
        self._totals[used] += counts
        self._top = max(self._top, other._top)
        self.total += other.total

    def counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Indices of the non-empty bins, ascending, and their counts; zeros are in bin 0."""
        self._flush()
        used = self._used(self._totals)
        return used, self._totals[used]

    def _used(self, counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
        return np.flatnonzero(counts[: max((self._top >> _SHIFT) + 1, ZERO_BINS)])

    @property
    def zeros(self) -> int:
        """How many values were zero."""
        self._flush()
        return int(self._totals[0])

    @property
    def amax(self) -> float:
        """The largest magnitude seen, exactly; 0 when all were zero; NaN or infinity when `check` would raise."""
        return largest_of(self._top)

    def check(self, tensor: str, where: str) -> None:
        """Raise if anything counted so far was NaN or infinite.

        Raises:
            CalibrationError: naming the tensor and the place.
        """
        if self._top >= _INFINITY:
            kind = "infinite" if self._top == _INFINITY else "NaN"
            raise CalibrationError(
                f"tensor {tensor!r} is {kind} for {where}",
                why="no scale can represent it",
                fix="Check the sample's preprocessing, and that the FP32 model itself gives finite numbers",
            )

    def bins(self) -> tuple[_Floats, _Floats, _Floats]:
        """Lower edge, upper edge and count of each non-empty bin, ascending, with zeros left out.

        The last bin ends at `amax`, and so may be of no width at all (every value in it is `amax`).
        """
        used, counts = self.counts()
        if used.size and used[0] == 0:
            used, counts = used[1:], counts[1:]
        lower = (used << _SHIFT).astype(np.uint32).view(np.float32).astype(np.float64)
        upper = ((used + 1) << _SHIFT).astype(np.uint32).view(np.float32).astype(np.float64)
        if used.size:
            upper[-1] = self.amax
        return lower, upper, counts.astype(np.float64)

    def linear(self, bins: int = 2048) -> tuple[_Floats, float]:
        """Counts of the non-zero magnitudes in equal bins over [0, amax], and the width of one.

        A logarithmic bin that straddles linear ones is split in proportion to the overlap, so counts may be fractions;
        their sum is exact. Zeros are left out: a symmetric scale represents zero without error, and the spike that
        a ReLU leaves there would only hide the rest (NVIDIA's pytorch-quantization overwrites bin 0 for that reason).
        """
        edges = np.linspace(0.0, self.amax, bins + 1)
        return np.maximum(np.diff(self._at_most(edges)), 0.0), self.amax / bins

    def quantile(self, share: float) -> float:
        """The magnitude that `share` of the non-zero values do not exceed, interpolated inside its bin (0: none)."""
        knots, cumulative = self._cumulative()
        return float(np.interp(share * cumulative[-1], cumulative, knots))

    def share_above(self, magnitude: float) -> float:
        """The share of all values, zeros included, that are larger than `magnitude`, interpolated inside its bin."""
        if not self.total:
            return 0.0
        return (self.total - self.zeros - float(self._at_most(np.array([magnitude]))[0])) / self.total

    def _at_most(self, magnitudes: _Floats) -> _Floats:
        knots, cumulative = self._cumulative()
        return np.interp(magnitudes, knots, cumulative)

    def _cumulative(self) -> tuple[_Floats, _Floats]:
        # Knots of the cumulative count of non-zero magnitudes, which is linear between them: 0, then both edges of
        # every bin.
        lower, upper, counts = self.bins()
        after = np.cumsum(counts)
        knots = np.stack([lower, upper], axis=1).ravel()
        cumulative = np.stack([after - counts, after], axis=1).ravel()
        return np.concatenate([[0.0], knots]), np.concatenate([[0.0], cumulative])
