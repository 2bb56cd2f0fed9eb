"""`--method mse`: the range with the smallest expected squared error of rounding and clipping together.

In units of the scale, the numbers of the type from b = 2**e on have the distance h. A magnitude t is represented by
b + n h, where n = round((t - b) / h). The squared error, integrated from 0 to t, is

    F(t) = F(b) + h**3 (n / 12 + ((t - b) / h - n)**3 / 3)

Each full cell of width h contributes h**3 / 12. Beyond the largest number n stays, and the integral is the clipping
error. The numbers of INT8 have b = 0 and h = 1; those of E4M3 have eight cells per power of two. A bin with count c
from l to u, whose values are assumed to be uniform, contributes c (F(u) - F(l)) / (u - l).

This formula is exact. The usual approximation h**2 / 12 (Banner et al. 2019, "Post training 4-bit quantization of
convolutional networks for rapid-deployment", arXiv:1810.05723) fails for values smaller than one step. Exact zeros
contribute nothing. Only magnitudes are known, so INT8's -128 is not used.

Touches: nothing.
"""

from __future__ import annotations

import math

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram
from trtopt.formats import Format

_OCTAVES = 12
_COARSE = 16
"""Coarse steps per octave."""
_FINE = 16
"""Fine steps per coarse step."""


def amax(histogram: Histogram, format: Format) -> float:
    """Return the largest magnitude to represent: positive and finite.

    The error has many shallow local minima. Ranges from the absmax down to 1/4096 of it are therefore tried in steps of
    2**(1/16), and then the neighbours of the best in steps of 2**(1/256).
    """
    from trtopt.calibrate import kernels

    absmax = histogram.amax
    if not absmax:
        return ALL_ZERO_AMAX
    bins = histogram.bins()
    smallest_error, best_step = math.inf, 0

    def search(steps: range) -> None:
        nonlocal smallest_error, best_step
        for step in steps:
            candidate = absmax * 2.0 ** (-step / (_COARSE * _FINE))
            # The kernel stops early once the error exceeds the smallest one so far.
            error = kernels.squared_error(bins, candidate / format.max, smallest_error, format.numbers)
            if error < smallest_error:
                smallest_error, best_step = error, step

    search(range(0, _OCTAVES * _COARSE * _FINE + 1, _FINE))
    search(range(max(best_step - _FINE, 0), best_step + _FINE + 1))
    return float(absmax * 2.0 ** (-best_step / (_COARSE * _FINE)))
