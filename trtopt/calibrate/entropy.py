"""`--method entropy`: the range whose 8-bit distribution tells least apart from the original, by KL divergence.

S. Migacz, "8-bit Inference with TensorRT", GTC 2017, with the details of NVIDIA's pytorch-quantization: of 2048 equal
bins over [0, amax], the first i (from 128 to 2048) are a candidate range. P is these bins, with the count of all later
ones folded into the last; Q is the same bins merged to 128 levels (bin j goes to level floor(128 j / i)), each level
spread evenly over its non-empty bins. Both are normalised, and the range with the least sum of P log(P / Q) wins.
A candidate whose last bin is empty while outliers are folded into it has an infinite divergence, so that a lone
outlier beyond a wide gap is not clipped.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram

BINS = 2048
LEVELS = 128
ROUNDING = 1e-12


def amax(histogram: Histogram) -> float:
    """The largest magnitude to represent: positive and finite.

    A narrower range must be better by more than rounding error, so that ties go to the range that clips less.
    """
    from trtopt.calibrate import kernels

    if not histogram.amax:
        return ALL_ZERO_AMAX
    counts, width = histogram.linear(BINS)
    chosen = kernels.least_divergent(counts, LEVELS, ROUNDING)
    return histogram.amax if chosen == BINS else chosen * width
