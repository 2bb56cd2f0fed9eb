"""`--method percentile`: the range holds 99.99 % of the magnitudes; the largest 0.01 % are clipped.

The percentile that NVIDIA found to keep all of its networks, BERT among them, within 1 % (Wu et al. 2020, "Integer
Quantization for Deep Learning Inference", arXiv:2004.09602). It is taken over the non-zero values: zero is exact under
any scale, and counting it would clip more the more padding or sparsity there is.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram

PERCENTILE = 99.99


def amax(histogram: Histogram) -> float:
    """The largest magnitude to represent: positive and finite."""
    return histogram.quantile(PERCENTILE / 100) or ALL_ZERO_AMAX
