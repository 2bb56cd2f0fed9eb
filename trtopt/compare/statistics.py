"""Confidence bounds of a share and of a drop in accuracy, and whether they settle a limit.

Every bound here is one-sided at 95 %, and truly so: the true value lies above `high` in at most 5 % of cases, and below
`low` in at most 5 %. That is why a share has the exact bounds and not Wilson's, which at a limit of 1 % pass a share of
just that in 6.8 % of cases (268 samples, none of them different) and fail it in up to 14 % (30 to 130 samples, one of
them different).

Touches: nothing. scipy is imported when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from trtopt.types import Verdict

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.98)
"""Tango's interval approximates: where few samples are discordant, its bounds at 95 % err in up to 7.3 % of cases. At a
nominal 98 %, and with the exact bound on the samples that turned wrong, it is at most 4.9 %, for 30 to 3,000 samples,
limits from 0.2 to 10 %, and churn up to 25 % (enumerated; the tests do it for a part of them)."""

_MOST_SAMPLES = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """An estimate, as a share of the samples (0.01 is one percent), and its one-sided bounds."""

    value: float
    low: float
    high: float


def share(hits: float, samples: int, confidence: float = CONFIDENCE) -> Bounds:
    """Return the exact bounds of a share (Clopper and Pearson 1934, Biometrika 26:404).

    `hits` may be a fraction, for estimates.

    Raises:
        ValueError: there are no samples, or more hits than samples.
    """
    from scipy.special import betaincinv

    if not 0 <= hits <= samples or samples <= 0:
        raise ValueError(f"{hits} of {samples} samples")
    low = float(betaincinv(hits, samples - hits + 1, 1.0 - confidence)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, samples - hits, confidence)) if hits < samples else 1.0
    return Bounds(value=hits / samples, low=low, high=high)


def simultaneous(hits: float, samples: int, groups: int) -> Bounds:
    """Return the bounds of one of several shares, such that all of them hold at 95 % together (Bonferroni).

    Raises:
        ValueError: as `share`, or there are no groups.
    """
    if groups <= 0:
        raise ValueError(f"{groups} groups")
    return share(hits, samples, 1.0 - (1.0 - CONFIDENCE) / groups)


def drop(only_before: float, only_after: float, samples: int) -> Bounds:
    """Return the bounds of the drop in accuracy on the same samples, `(only_before - only_after) / samples`.

    `only_before` samples were right before and wrong after, `only_after` the other way round; those on which both agree
    say nothing of the drop but their number. The bounds are Tango's score interval for a difference of paired shares
    (Tango 1998, Statistics in Medicine 17:891), which holds for small counts, too, and for none.

    Raises:
        ValueError: there are no samples, or fewer than the two counts.
    """
    from scipy.optimize import brentq

    if samples <= 0 or min(only_before, only_after) < 0 or only_before + only_after > samples:
        raise ValueError(f"{only_before} and {only_after} of {samples} samples")
    value = (only_before - only_after) / samples
    edge = 1.0 - 1e-12

    def score(delta: float) -> float:
        # Most likely rate of `only_after` samples if the drop were `delta`: the positive root of a quadratic.
        a = 2.0 * samples
        b = -only_before - only_after + (2.0 * samples - only_before + only_after) * delta
        c = -only_after * delta * (1.0 - delta)
        rate = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
        variance = samples * (2.0 * rate + delta * (1.0 - delta))
        difference = only_before - only_after - samples * delta
        if abs(difference) < 1e-9:  # at the estimate, where the variance may be 0, too
            return 0.0
        return difference / math.sqrt(variance) if variance > 0 else math.copysign(1e9, difference)

    # The score falls from one end of [-1, 1] to the other, and is 0 at the estimate.
    low = -1.0 if score(-edge) < _Z else brentq(lambda delta: score(delta) - _Z, -edge, value, xtol=1e-12)
    high = 1.0 if score(edge) > -_Z else brentq(lambda delta: score(delta) + _Z, value, edge, xtol=1e-12)
    # The drop is no larger than the share of samples that turned wrong, whose exact bound is tighter where few did.
    low, high = max(low, -share(only_after, samples).high), min(high, share(only_before, samples).high)
    return Bounds(value=value, low=float(low), high=float(high))


def mcnemar(only_before: int, only_after: int) -> float:
    """Return the p-value of McNemar's exact test that neither model is right more often.

    McNemar 1947, Psychometrika 12:153.
    """
    from scipy.stats import binomtest

    discordant = only_before + only_after
    return float(binomtest(only_before, discordant, 0.5).pvalue) if discordant else 1.0


def settles(bounds: Bounds, limit: float, *, floor: bool = False) -> Verdict:
    """Return `pass` when the value is shown to be at most `limit` (`floor`: at least), `fail` when the contrary is.

    Between the two it is `inconclusive`. A limit of exactly 0 (`floor`: 1) allows no exception in these samples, and is
    compared with the value itself: no number of samples would show that there is none.
    """
    if floor:
        mirrored = Bounds(value=1.0 - bounds.value, low=1.0 - bounds.high, high=1.0 - bounds.low)
        return settles(mirrored, 1.0 - limit)
    if limit == 0:
        return "pass" if bounds.value <= 0 else "fail"
    if bounds.high <= limit:
        return "pass"
    return "fail" if bounds.low > limit else "inconclusive"


def needed(estimate: Callable[[int], Bounds], limit: float, *, floor: bool = False) -> int:
    """Return about how many samples would settle the limit with shares as they are; 0 when no number would.

    `estimate(n)` returns the bounds with `n` samples.
    """
    count = 1
    while settles(estimate(count), limit, floor=floor) == "inconclusive":
        count *= 2
        if count > _MOST_SAMPLES:
            return 0
    low, high = count // 2, count
    while high - low > max(1, high // 200):  # to two digits: it is an estimate from an estimate
        middle = (low + high) // 2
        open_ = settles(estimate(middle), limit, floor=floor) == "inconclusive"
        low, high = (middle, high) if open_ else (low, middle)
    digits: int = 10 ** max(len(str(high)) - 2, 0)
    return math.ceil(high / digits) * digits
