"""Samples with the largest errors, to look at first.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from trtopt.compare.measures.outputs import Floats
from trtopt.types import WorstSample

WORST_KEPT = 50
"""Largest number of worst samples in a report."""


def worst(
    badness: Sequence[float], indices: Sequence[int], ids: Sequence[str], note: Callable[[int], str]
) -> tuple[WorstSample, ...]:
    """Return the samples with the highest badness, the worst first.

    Samples with a badness of 0 are left out. Equally bad samples are in the order of the dataset.

    Args:
        badness: the badness of each comparable sample.
        indices: its index in the dataset.
        ids: the names of the dataset's samples.
        note: returns a note on the i-th comparable sample.

    Returns:
        Samples with an SQNR of NaN, because the values of such an output are not subtracted.
    """
    return tuple(
        WorstSample(sample=ids[indices[i]], index=indices[i], sqnr=math.nan, note=note(i)) for i in _order(badness)
    )


def noisiest(
    noise: Sequence[float], indices: Sequence[int], ids: Sequence[str], note: Callable[[int], str]
) -> tuple[WorstSample, ...]:
    """Return the same as `worst` for `noise`, the ratio of error energy to signal energy, with the samples' SQNR."""
    return tuple(
        WorstSample(sample=ids[indices[i]], index=indices[i], sqnr=-10.0 * math.log10(noise[i]), note=note(i))
        for i in _order(noise)
    )


def _order(badness: Sequence[float]) -> list[int]:
    """Return the indices of the samples with the highest badness above 0, the worst first."""
    order = np.argsort(-np.asarray(badness, np.float64), kind="stable")[:WORST_KEPT]
    return [i for i in order.tolist() if badness[i] > 0]


def suspects(badness: Floats, indices: Sequence[int], count: int) -> set[int]:
    """Return the indices of the `count` samples with the highest badness above 0 so far."""
    size = len(badness)
    order = np.argpartition(-badness, count)[:count] if size > count else np.arange(size)
    return {indices[i] for i in order.tolist() if badness[i] > 0}


def first_bad(bad: Sequence[int], bad_fp32: int, ids: Sequence[str]) -> str:
    """Return the name of the first sample with a NaN or Inf, and the number of samples in which FP32 has it.

    The text is empty if there are none. `bad` are the indices of such samples.
    """
    if not bad:
        return ""
    return ids[bad[0]] + (f"; FP32 itself has it in {bad_fp32}" if bad_fp32 else "")
