"""`--method mse`: the range with the least expected squared error of rounding and clipping together.

For scale s a magnitude t is represented as n s, n = min(round(t / s), 127). Summed up to t, the squared error is

    F(t) = integral from 0 to t of (x - n s)**2 dx = s**3 (n / 12 + (t / s - n)**3 / 3)

(each whole cell of width s adds s**3 / 12; beyond 127 s it is the clipping error). A bin of count c from l to u, taken
as uniform, adds c (F(u) - F(l)) / (u - l). This is exact where the usual s**2 / 12 (Banner et al. 2019, "Post training
4-bit quantization of convolutional networks for rapid-deployment", arXiv:1810.05723) is an approximation that fails for
values smaller than a step. Exact zeros add nothing. Only magnitudes are known, so that the level -128 is not used.

Touches: nothing.
"""

from __future__ import annotations

import math

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram

LEVELS = 127
_OCTAVES = 12
_COARSE = 16
_FINE = 16


def amax(histogram: Histogram) -> float:
    """The largest magnitude to represent: positive and finite.

    The error has many shallow local minima, so ranges from the largest magnitude down to 1/4096 of it are tried in
    steps of 2**(1/16), and then those around the best in steps of 2**(1/256).
    """
    from trtopt.calibrate import kernels

    largest = histogram.amax
    if not largest:
        return ALL_ZERO_AMAX
    bins = histogram.bins()
    least, best = math.inf, 0

    def search(steps: range) -> None:
        nonlocal least, best
        for step in steps:
            candidate = largest * 2.0 ** (-step / (_COARSE * _FINE))
            error = kernels.squared_error(bins, candidate / LEVELS, least)
            if error < least:
                least, best = error, step

    search(range(0, _OCTAVES * _COARSE * _FINE + 1, _FINE))
    search(range(max(best - _FINE, 0), best + _FINE + 1))
    return float(largest * 2.0 ** (-best / (_COARSE * _FINE)))
