"""Mean and percentiles of a series of latencies, with confidence intervals.

Successive latencies are correlated (clocks, caches, other programs), so the usual standard error of the mean, which
assumes independent values, is too small. Here a series is divided into blocks:

- Mean: confidence interval of the block means (nonoverlapping batch means; Schmeiser 1982, Operations Research 30:556,
  recommends 10 to 30 blocks). It is computed over the blocks and over pairs of blocks, and the wider interval is used:
  the pairs reveal correlation between neighboring blocks. The method assumes that blocks last longer than whatever
  correlates the runs, which cannot be tested here.
- Percentiles: order statistics whose ranks follow from the binomial distribution (Woodruff 1952, JASA 47:635) for the
  effective number of independent runs. That is the number of runs divided by the design effect: how much more the
  share of slow runs varies between blocks than it would between independent runs.
- Speedup: both targets are measured in turns, so the blocks come in pairs. The interval is that of a ratio of paired
  means (Cochran 1977, Sampling Techniques, 6.4), in which common drift cancels.

Touches: nothing. scipy is imported when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trtopt.types import Interval

CONFIDENCE = 0.95
PERCENTILES = (50, 90, 95, 99)
MIN_BLOCKS = 8
"""Smallest number of blocks: with fewer, the pairs of blocks are too few for an estimate."""

Floats = npt.NDArray[np.float64]


def summary(blocks: Floats) -> dict[str, float]:
    """Return the mean and the percentiles of `blocks`, in the same unit.

    A percentile is a latency that was measured: the smallest that is not exceeded by the given percentage of runs.

    Args:
        blocks: latencies, float64 [blocks, runs per block].
    """
    # "inverted_cdf" returns a measured value. numpy's default interpolates between two of them.
    percentiles = {f"p{p}": float(np.percentile(blocks, p, method="inverted_cdf")) for p in PERCENTILES}
    return {"mean": float(blocks.mean()), **percentiles}


def noise(blocks: Floats) -> float:
    """Return half the width of the two-sided 95 % confidence interval of the mean, relative to the mean."""
    return _half_width(blocks.mean(axis=1), (1 + CONFIDENCE) / 2) / float(blocks.mean())


def bounds(blocks: Floats) -> Mapping[str, Interval]:
    """Return one-sided 95 % bounds of the mean and of each percentile, in the unit of `blocks`.

    A percentile has an infinite upper bound if the runs are too few for a finite one.
    """
    mean, half = float(blocks.mean()), _half_width(blocks.mean(axis=1), CONFIDENCE)
    of_mean = {"mean": Interval(low=mean - half, high=mean + half)}
    return of_mean | {f"p{p}": _percentile(blocks, p) for p in PERCENTILES}


def ratio(numerator: Floats, denominator: Floats) -> Interval:
    """Return one-sided 95 % bounds of the ratio of two mean latencies whose blocks were measured in turns."""
    numerator_means, denominator_means = numerator.mean(axis=1), denominator.mean(axis=1)
    value = float(numerator_means.mean() / denominator_means.mean())
    half = _half_width(numerator_means - value * denominator_means, CONFIDENCE) / float(denominator_means.mean())
    return Interval(low=value - half, high=value + half)


def _half_width(means: Floats, level: float) -> float:
    """Return half the confidence interval of the mean of `means`: the wider of those over blocks and over pairs."""
    if len(means) < MIN_BLOCKS:
        raise ValueError(f"{len(means)} blocks are too few")
    return max(_student(means, level), _student(_pairs(means), level))


def _student(means: Floats, level: float) -> float:
    """Return the half width by Student's t distribution, for independent `means`."""
    from scipy.special import stdtrit

    return float(stdtrit(len(means) - 1, level)) * float(means.std(ddof=1)) / math.sqrt(len(means))


def _percentile(blocks: Floats, percent: int) -> Interval:
    """Return one-sided 95 % bounds of a percentile, which are measured latencies themselves."""
    from scipy.stats import binom

    latencies, share = np.sort(blocks, axis=None), percent / 100
    runs = len(latencies)
    independent_runs = max(1, int(runs / _design_effect(blocks, percent)))
    # Ranks of the bounds among that many independent runs. They are scaled to ranks among all runs below.
    low = int(binom.ppf(1 - CONFIDENCE, independent_runs, share))
    high = int(binom.ppf(CONFIDENCE, independent_runs, share)) + 1
    lower, upper = 0.0, math.inf
    if low > 0:
        lower = float(latencies[max(low * runs // independent_runs, 1) - 1])
    if high <= independent_runs:
        rank = -(-high * runs // independent_runs)  # rounded up
        upper = float(latencies[rank - 1])
    return Interval(low=lower, high=upper)


def _design_effect(blocks: Floats, percent: int) -> float:
    """Return how many correlated runs are worth one independent run, for estimates of a percentile.

    It is the variance of the share of slow runs between blocks, over the variance expected of independent runs.
    """
    slow_share = (blocks > np.percentile(blocks, percent, method="inverted_cdf")).mean(axis=1)
    share = float(slow_share.mean())
    if share == 0.0:  # too few runs for this percentile, or all of them equal
        return 1.0
    independent_variance = share * (1 - share) / blocks.shape[1]
    block_variance = float(slow_share.var(ddof=1))
    pair_variance = 2 * float(_pairs(slow_share).var(ddof=1))  # a pair has twice the runs of a block
    effect: float = max(1.0, max(block_variance, pair_variance) / independent_variance)
    return effect


def _pairs(values: Floats) -> Floats:
    """Return the mean of each two neighboring values; the last of an odd number is dropped."""
    means: Floats = values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return means
