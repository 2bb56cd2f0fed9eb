"""The samples to look at first.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from trtopt.types import WorstSample

WORST_KEPT = 50


def worst(
    badness: Sequence[float], indices: Sequence[int], ids: Sequence[str], note: Callable[[int], str]
) -> tuple[WorstSample, ...]:
    """The samples with the highest `badness`, the worst first, those with none left out; of equals, the earlier first.

    `indices[i]` is the place in the dataset of the sample that `badness[i]` is of, and `note(i)` what is said of it.
    The SQNR is NaN: there is none where values are not subtracted.
    """
    return tuple(
        WorstSample(sample=ids[indices[i]], index=indices[i], sqnr=math.nan, note=note(i)) for i in _order(badness)
    )


def noisiest(
    noise: Sequence[float], indices: Sequence[int], ids: Sequence[str], note: Callable[[int], str]
) -> tuple[WorstSample, ...]:
    """The same where `noise` is error energy over signal energy, so that the samples have an SQNR."""
    return tuple(
        WorstSample(sample=ids[indices[i]], index=indices[i], sqnr=-10.0 * math.log10(noise[i]), note=note(i))
        for i in _order(noise)
    )


def _order(badness: Sequence[float]) -> list[int]:
    order = np.argsort(-np.asarray(badness, np.float64), kind="stable")[:WORST_KEPT]
    return [i for i in order.tolist() if badness[i] > 0]


def first_bad(bad: Sequence[int], bad_fp32: int, ids: Sequence[str]) -> str:
    """The first of the samples with a NaN or Inf, and in how many of them FP32 is the one that gave it."""
    if not bad:
        return ""
    return ids[bad[0]] + (f"; FP32 itself gives it in {bad_fp32}" if bad_fp32 else "")
