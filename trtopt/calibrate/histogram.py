"""Exact histogram of one tensor's magnitudes over all samples, in memory that does not grow with their number.

The bit pattern of a float32 without its sign orders magnitudes. Its top 17 bits (8 of exponent, 9 of mantissa) index
the bin, so every bin is 2**-9 of its power of two wide, from the smallest number to the largest. The range does not
need to be known before the first sample, and bins never move. Counts are integers. They do not depend on the order of
samples or on the batch size, and two histograms merge by addition.

Touches: nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.errors import CalibrationError

BINS = 1 << 17
ZERO_BINS = 8
"""Number of the first bins whose magnitudes round to zero under every scale. They count as zero: see `Histogram`."""
ALL_ZERO_AMAX = 1.0
"""Range of a tensor that was always zero. Any scale represents zero exactly. This one is a normal number in every
floating-point type, also after the division by 127."""

_SHIFT = 14
"""Low bits of a magnitude that are dropped to obtain its bin."""
_INFINITY = 0x7F800000
"""Bit pattern of float32 infinity; the patterns of NaN are larger."""
MASK = 1e9
"""Magnitudes from here on are infinite, or mean infinity, as in a mask: 8 bits saturate there. See `unmasked`."""
_MASK_BIN = int(np.float32(MASK).view(np.uint32)) >> _SHIFT
_FLUSH_AT = 0xFFFFFFFF
"""Largest value of a 32-bit counter."""

_Floats = npt.NDArray[np.float64]


def largest_of(bits: int) -> float:
    """Return the magnitude of a float32 with these bits, or 0 if it counts as zero."""
    return 0.0 if bits >> _SHIFT < ZERO_BINS else float(np.uint32(bits).view(np.float32))


class Histogram:
    """Exact counts of |x| in 2**17 logarithmic bins. `amax` and `total` are exact as well.

    Magnitudes below 2**-132, the upper edge of bin 7, count as zero, in bin 0. Such denormals round to zero under every
    scale, because no scale is smaller than 2**-126. The arrays take 1.5 MB of address space, but only the pages of bins
    that occur use memory. Not thread-safe.
    """

    __slots__ = ("_counters", "_pending", "_top", "_totals", "total")

    def __init__(self) -> None:
        # The cache limits the speed of counting, and 32-bit counters need half the space in it.
        # They are added to the 64-bit totals before they can overflow.
        self._counters = np.zeros(BINS, np.uint32)
        self._totals = np.zeros(BINS, np.int64)
        self._pending = 0  # elements in the counters
        self._top = 0  # bits of the absmax
        self.total = 0

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64], top: int, total: int) -> Histogram:
        """Return a histogram of elements that were counted elsewhere.

        Args:
            counts: elements per bin, int64 [2**17]. The array is kept, not copied.
            top: the bits of the largest magnitude.
            total: the number of elements.
        """
        histogram = cls()
        histogram._totals, histogram._top, histogram.total = counts, top, total
        return histogram

    def add(self, array: npt.NDArray[np.generic]) -> None:
        """Count every element of a float16, float32 or float64 array of any shape and layout, as float32.

        NaN and infinity are counted, and so is a float64 that overflows float32; `check` reports them.

        Raises:
            CalibrationError: the array does not hold floating-point numbers of these types.
        """
        from trtopt.calibrate import kernels

        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise CalibrationError(
                f"{array.dtype} values cannot be calibrated", why="only floating-point tensors have an INT8 scale"
            )
        if array.dtype == np.float32 and array.flags.carray:
            flat = array.reshape(-1)
        else:
            # The order of elements does not matter: "K" avoids a transposition.
            with np.errstate(over="ignore"):
                flat = np.require(array.ravel(order="K"), np.float32, ["C", "A"])
        if self._pending + flat.size > _FLUSH_AT:
            self._flush()
        self._top = max(self._top, kernels.count(flat.view(np.uint32), self._counters))
        self._pending += flat.size
        self.total += flat.size

    def _flush(self) -> None:
        """Move the counts of the 32-bit counters into the totals."""
        used = self._used(self._counters)
        self._totals[used] += self._counters[used]
        self._counters[used] = 0
        self._pending = 0
        # The kernel spreads zeros over the first bins: collect them in bin 0.
        self._totals[0] = self._totals[:ZERO_BINS].sum()
        self._totals[1:ZERO_BINS] = 0

    def merge(self, other: Histogram) -> None:
        """Add the counts of `other`. The result is exact and does not depend on the order of merges."""
        used, counts = other.counts()
        self._totals[used] += counts
        self._top = max(self._top, other._top)
        self.total += other.total

    def unmasked(self) -> Histogram:
        """Return the histogram without magnitudes from the bin of `MASK` on, which are not activations.

        No value may be NaN. If there are such magnitudes, `amax` is the upper edge of the last bin that is left.
        """
        if self._top >> _SHIFT < _MASK_BIN:
            return self
        self._flush()
        counts = self._totals.copy()
        counts[_MASK_BIN:] = 0
        used = np.flatnonzero(counts)
        top = ((int(used[-1]) + 1) << _SHIFT) - 1 if used.size and used[-1] >= ZERO_BINS else 0
        return Histogram.of(counts, top, int(counts.sum()))

    def counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the indices of the non-empty bins, ascending, and their counts. Zeros are in bin 0."""
        self._flush()
        used = self._used(self._totals)
        return used, self._totals[used]

    def _used(self, counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
        """Return the indices of the non-zero counts. Bins above that of the absmax are known to be empty."""
        return np.flatnonzero(counts[: max((self._top >> _SHIFT) + 1, ZERO_BINS)])

    @property
    def top(self) -> int:
        """Bits of the largest magnitude, as float32."""
        return self._top

    @property
    def zeros(self) -> int:
        """Number of values that were zero."""
        self._flush()
        return int(self._totals[0])

    @property
    def amax(self) -> float:
        """Exact absmax of all values: 0 if all were zero, NaN or infinity if `check` would raise."""
        return largest_of(self._top)

    def check(self, tensor: str, where: str) -> None:
        """Raise if any value counted so far was NaN. Infinities are legal, as in a mask (see `unmasked`).

        Args:
            tensor: the tensor's name, for the message.
            where: the samples that were counted, for the message.

        Raises:
            CalibrationError: a value was NaN.
        """
        if self._top > _INFINITY:
            raise CalibrationError(
                f"tensor {tensor!r} is NaN for {where}",
                why="no scale can represent it",
                fix="Check the sample's preprocessing, and that the FP32 model itself produces finite numbers",
            )

    def bins(self) -> tuple[_Floats, _Floats, _Floats]:
        """Return the lower edges, upper edges and counts of the non-empty bins, ascending, without zeros.

        All three are float64 of the same length. The last bin ends at `amax`, so its width may be 0: then every value
        in it equals `amax`.
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
        """Return the counts of the non-zero magnitudes in equal bins over [0, amax], and the width of a bin.

        A logarithmic bin that overlaps several linear bins is split in proportion to the overlap, so counts may be
        fractions; their sum is exact. Zeros are left out. A symmetric scale represents zero without error, and the
        spike of zeros after a ReLU would hide all other values (NVIDIA's pytorch-quantization overwrites bin 0 for
        that reason).
        """
        edges = np.linspace(0.0, self.amax, bins + 1)
        return np.maximum(np.diff(self._at_most(edges)), 0.0), self.amax / bins

    def quantile(self, share: float) -> float:
        """Return the magnitude that `share` (0 to 1) of the non-zero values do not exceed.

        It is interpolated inside its bin, and 0 if there are no non-zero values.
        """
        knots, cumulative = self._cumulative()
        return float(np.interp(share * cumulative[-1], cumulative, knots))

    def share_above(self, magnitude: float) -> float:
        """Return the share (0 to 1) of all values, zeros included, that are larger than `magnitude`.

        It is interpolated inside its bin.
        """
        if not self.total:
            return 0.0
        not_larger = float(self._at_most(np.array([magnitude]))[0])
        return (self.total - self.zeros - not_larger) / self.total

    def _at_most(self, magnitudes: _Floats) -> _Floats:
        """Return the number of non-zero values up to each magnitude, interpolated inside bins."""
        knots, cumulative = self._cumulative()
        return np.interp(magnitudes, knots, cumulative)

    def _cumulative(self) -> tuple[_Floats, _Floats]:
        """Return magnitudes, ascending, and the number of non-zero values up to each.

        The cumulative count is linear between these points, which are 0 and both edges of every bin.
        """
        lower, upper, counts = self.bins()
        after = np.cumsum(counts)
        knots = np.stack([lower, upper], axis=1).ravel()
        cumulative = np.stack([after - counts, after], axis=1).ravel()
        return np.concatenate([[0.0], knots]), np.concatenate([[0.0], cumulative])
