"""`--method minmax`: the range is the largest magnitude seen. Nothing is clipped; one outlier coarsens all the rest.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram


def amax(histogram: Histogram) -> float:
    """The largest magnitude to represent: positive and finite."""
    return histogram.amax or ALL_ZERO_AMAX
