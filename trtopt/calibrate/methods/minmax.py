"""`--method minmax`: the range is the absmax. Nothing is clipped, but one outlier coarsens the scale for all values.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram
from trtopt.formats import Format


def amax(histogram: Histogram, format: Format) -> float:  # noqa: ARG001 - the interface of a method
    """Return the largest magnitude to represent: positive and finite."""
    return histogram.amax or ALL_ZERO_AMAX
