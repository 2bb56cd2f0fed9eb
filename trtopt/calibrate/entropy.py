"""`--method entropy`: the range whose 8-bit distribution tells least apart from the original, by KL divergence.

S. Migacz, "8-bit Inference with TensorRT", GTC 2017, with the details of NVIDIA's pytorch-quantization: of 2048 equal
bins over [0, amax], the first i (from 128 to 2048) are a candidate range. P is these bins, with the count of all later
ones folded into the last; Q is the same bins merged to 128 levels (bin j goes to level floor(128 j / i)), each level
spread evenly over its non-empty bins. Both are normalised, and the range with the least sum of P log(P / Q) wins.
A candidate whose last bin is empty while outliers are folded into it has an infinite divergence, so that a lone
outlier beyond a wide gap is not clipped.

One thing is ours: a range that would clip more than `MAX_CLIPPED` of the non-zero values is no candidate. The published
search has no such floor, and where many values are equal (the empty background of a picture, after a convolution) it
takes the spikes for information that a wide range would blur, and clips whatever lies beyond them: on the digits sample
it cut one layer at the 86th percentile, and accuracy fell from 99.2 % to 21.2 %.

Touches: nothing.
"""

from __future__ import annotations

import numpy as np

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram

BINS = 2048
LEVELS = 128
ROUNDING = 1e-12
MAX_CLIPPED = 1e-4
"""As much as the percentile method clips."""


def amax(histogram: Histogram) -> float:
    """The largest magnitude to represent: positive and finite.

    A narrower range must be better by more than rounding error, so that ties go to the range that clips less.
    """
    from trtopt.calibrate import kernels

    if not histogram.amax:
        return ALL_ZERO_AMAX
    counts, width = histogram.linear(BINS)
    inside = np.cumsum(counts)
    narrowest = int(np.searchsorted(inside, (1 - MAX_CLIPPED) * inside[-1])) + 1
    chosen = kernels.least_divergent(counts, LEVELS, min(max(narrowest, LEVELS), BINS), ROUNDING)
    return histogram.amax if chosen == BINS else chosen * width
