"""A first look at samples: whether each can be loaded, and how their values are distributed.

Touches: loads the samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trtopt.data.dataset import Array, Dataset, batches, spread
from trtopt.types import UNLIKE

_MEASURED = 64
"""Largest number of samples whose values are measured, spread evenly."""
_CONSTANT = 1e-6
"""Share of the mean up to which a standard deviation is rounding."""
_WIDER = 3.0
"""Ratio of standard deviations from which values are not alike: pixels that are not normalized differ by 4 or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The number of `samples`, whether all are the `same`, and the moments of the values of some of them.

    `moments` are the mean and the standard deviation of the finite values by floating-point input. A deviation that is
    only rounding is 0.
    """

    samples: int
    same: bool
    moments: Mapping[str, tuple[float, float]]


def look(dataset: Dataset, tell: Callable[[int], None]) -> Look:
    """Load every sample once.

    `tell` is called with the number of samples that were loaded.

    Raises:
        DataError: a sample cannot be loaded, or contains NaN or infinity.
    """
    single = dataset.groups.single if dataset.groups else dataset
    measured = set(spread(len(single), _MEASURED))
    sums: dict[str, list[float]] = {}
    first, same = b"", len(single) > 1
    for done, batch in enumerate(batches(single), 1):
        tell(done)
        if same:  # until one differs
            found = _digest(batch.feed)
            first = first or found
            same = found == first
        if done - 1 not in measured:
            continue
        for name, array in batch.feed.items():
            if array.dtype.kind == "f":
                values = array[np.isfinite(array)].astype(np.float64)
                with np.errstate(over="ignore"):
                    terms = (values.size, float(values.sum()), float(np.square(values).sum()))
                sums[name] = [old + new for old, new in zip(sums.get(name, (0, 0, 0)), terms, strict=True)]
    moments = {name: _moments(*each) for name, each in sums.items() if each[0] and math.isfinite(each[2])}
    return Look(samples=len(single), same=same, moments=moments)


def _digest(feed: Mapping[str, Array]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for _, array in sorted(feed.items()):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _moments(count: float, total: float, squares: float) -> tuple[float, float]:
    """Return the mean and the standard deviation of `count` values from their sum and the sum of their squares."""
    mean = total / count
    width = math.sqrt(max(squares / count - mean * mean, 0.0))
    return mean, width if width > _CONSTANT * abs(mean) else 0.0


def unlike(calib: Look, data: Look) -> list[str]:
    """Return a sentence for each input whose values differ so much that one of both is likely preprocessed wrongly.

    The standard deviations differ by a factor, or the means by more than the larger of the deviations. Nothing is said
    of an input that is constant in one of both, such as a mask without padding.
    """
    sentences = []
    for name in calib.moments.keys() & data.moments.keys():
        (mean, width), (other_mean, other_width) = calib.moments[name], data.moments[name]
        narrow, wide = sorted((width, other_width))
        if narrow == 0.0:
            continue
        if wide > _WIDER * narrow or abs(mean - other_mean) > wide:
            sentences.append(
                f"{UNLIKE}: the values of {name} have mean {mean:.3g} "
                f"and standard deviation {width:.3g}, the others {other_mean:.3g} and {other_width:.3g}. If they are "
                "preprocessed in another way, the scales are wrong"
            )
    return sorted(sentences)
