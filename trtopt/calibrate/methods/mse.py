"""`--method mse`: the range with the smallest expected squared error of rounding and clipping together.

With scale s, a magnitude t is represented by n s, where n = min(round(t / s), 127). The squared error, integrated from
0 to t, is

    F(t) = integral from 0 to t of (x - n s)**2 dx = s**3 (n / 12 + (t / s - n)**3 / 3)

Each full cell of width s contributes s**3 / 12. Beyond 127 s the integral is the clipping error. A bin with count c
from l to u, whose values are assumed to be uniform, contributes c (F(u) - F(l)) / (u - l).

This formula is exact. The usual approximation s**2 / 12 (Banner et al. 2019, "Post training 4-bit quantization of
convolutional networks for rapid-deployment", arXiv:1810.05723) fails for values smaller than one step. Exact zeros
contribute nothing. Only magnitudes are known, so the level -128 is not used.

Touches: nothing.
"""

from __future__ import annotations

import math

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram

LEVELS = 127
_OCTAVES = 12
_COARSE = 16
"""Coarse steps per octave."""
_FINE = 16
"""Fine steps per coarse step."""


def amax(histogram: Histogram) -> float:
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
            error = kernels.squared_error(bins, candidate / LEVELS, smallest_error)
            if error < smallest_error:
                smallest_error, best_step = error, step

    search(range(0, _OCTAVES * _COARSE * _FINE + 1, _FINE))
    search(range(max(best_step - _FINE, 0), best_step + _FINE + 1))
    return float(absmax * 2.0 ** (-best_step / (_COARSE * _FINE)))
