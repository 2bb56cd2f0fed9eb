"""What a series of latencies tells: its mean and percentiles, and how far they are to be trusted.

Latencies that follow each other are alike (clocks, caches, another program), so that the usual error of a mean, which
takes them for independent, is too small. Here a series is cut into blocks:

- Mean: the interval of the block means (nonoverlapping batch means; Schmeiser 1982, Operations Research 30:556: 10 to
  30 blocks do). It is taken over the blocks and over pairs of them, and the wider one counts: where neighbouring blocks
  are alike, too, the pairs say so. The blocks must be longer than what makes runs alike: nothing can tell that here.
- Percentiles: order statistics whose ranks follow from the binomial distribution, for as many independent runs as the
  series is worth (Woodruff 1952, JASA 47:635): its length over the design effect, which is how much more the share of
  slow runs varies between blocks than between independent runs.
- Speedup: both targets were measured in turns, so that a block of one has a block of the other beside it; the interval
  is that of a ratio of paired means (Cochran 1977, Sampling Techniques, 6.4), in which common drift cancels.

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
"""Below that the pairs of blocks would be too few to say anything."""

Floats = npt.NDArray[np.float64]


def summary(blocks: Floats) -> dict[str, float]:
    """Mean and percentiles, in the unit of `blocks` (float64 [blocks, runs in each]).

    A percentile is a latency that was measured: the smallest that at least so many percent of runs do not exceed.
    """
    found = {f"p{p}": float(np.percentile(blocks, p, method="inverted_cdf")) for p in PERCENTILES}
    return {"mean": float(blocks.mean()), **found}


def noise(blocks: Floats) -> float:
    """Half the two-sided 95 % confidence interval of the mean, relative to the mean."""
    return _half_width(blocks.mean(axis=1), (1 + CONFIDENCE) / 2) / float(blocks.mean())


def bounds(blocks: Floats) -> Mapping[str, Interval]:
    """One-sided 95 % bounds of the mean and of each percentile; infinite where the runs are too few to have one."""
    mean, half = float(blocks.mean()), _half_width(blocks.mean(axis=1), CONFIDENCE)
    found = {"mean": Interval(low=mean - half, high=mean + half)}
    return found | {f"p{p}": _percentile(blocks, p) for p in PERCENTILES}


def ratio(numerator: Floats, denominator: Floats) -> Interval:
    """One-sided 95 % bounds of the ratio of two mean latencies, whose blocks were measured in turns."""
    above, below = numerator.mean(axis=1), denominator.mean(axis=1)
    value = float(above.mean() / below.mean())
    half = _half_width(above - value * below, CONFIDENCE) / float(below.mean())
    return Interval(low=value - half, high=value + half)


def _half_width(means: Floats, level: float) -> float:
    """How far the true mean of the blocks may lie from theirs: the wider of the estimates by blocks and by pairs."""
    if len(means) < MIN_BLOCKS:
        raise ValueError(f"{len(means)} blocks are too few")
    return max(_student(means, level), _student(_pairs(means), level))


def _student(means: Floats, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(len(means) - 1, level)) * float(means.std(ddof=1)) / math.sqrt(len(means))


def _percentile(blocks: Floats, percent: int) -> Interval:
    from scipy.stats import binom

    series, share = np.sort(blocks, axis=None), percent / 100
    runs = len(series)
    worth = max(1, int(runs / _design_effect(blocks, percent)))
    low, high = int(binom.ppf(1 - CONFIDENCE, worth, share)), int(binom.ppf(CONFIDENCE, worth, share)) + 1
    return Interval(
        low=float(series[max(low * runs // worth, 1) - 1]) if low else 0.0,
        high=float(series[-(-high * runs // worth) - 1]) if high <= worth else math.inf,
    )


def _design_effect(blocks: Floats, percent: int) -> float:
    """Variance of the share of runs above the percentile, as the blocks show it, over that of independent runs."""
    slow = (blocks > np.percentile(blocks, percent, method="inverted_cdf")).mean(axis=1)
    share = float(slow.mean())
    if share == 0.0:  # too few runs for this percentile, or all of them equal
        return 1.0
    once = share * (1 - share) / blocks.shape[1]
    seen = max(float(slow.var(ddof=1)), 2 * float(_pairs(slow).var(ddof=1)))
    effect: float = max(1.0, seen / once)
    return effect


def _pairs(values: Floats) -> Floats:
    """The mean of each two that follow each other."""
    means: Floats = values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return means
