"""The number by which candidates are ranked for drift.

Touches: nothing.
"""

from __future__ import annotations

import math

from trtopt.types import Comparison


def quality(comparison: Comparison) -> float:
    """Return the number by which candidates are ranked for drift; higher is better.

    It is the SQNR in dB of the worst floating-point output. Without such an output, it is the percentage of FP32's
    boxes, pixels or elements that the candidate reproduces. It is NaN without any of these metrics.
    """
    for metric in ("sqnr", "matched", "pixels", "equal"):
        measured = [output.values[metric] for output in comparison.outputs if metric in output.values]
        if measured:
            return min(measured)
    return math.nan
