"""`--method percentile`: the range is the 99.99th percentile of |x|; the largest 0.01 % of the values are clipped.

NVIDIA found that this percentile keeps all of its networks, including BERT, within 1 % of FP32 accuracy (Wu et al.
2020, "Integer Quantization for Deep Learning Inference", arXiv:2004.09602). The percentile is taken over the non-zero
values. Zero is exact under any scale, and counting it would clip more values the more padding or sparsity there is.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram
from trtopt.formats import Format

PERCENTILE = 99.99


def amax(histogram: Histogram, format: Format) -> float:  # noqa: ARG001 - the interface of a method
    """Return the largest magnitude to represent: positive and finite."""
    return histogram.quantile(PERCENTILE / 100) or ALL_ZERO_AMAX
