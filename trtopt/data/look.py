"""A first look at samples: whether each can be loaded, and how their values are distributed.

Touches: loads the samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trtopt.data.dataset import Dataset, batches, spread

_MEASURED = 64
"""Largest number of samples whose values are measured, spread evenly."""
_WIDER = 3.0
"""Ratio of standard deviations from which values are not alike: pixels that are not normalized differ by 4 or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The number of `samples`, whether all that were measured are the same, and the moments of their values.

    `moments` are the mean and the standard deviation of the finite values by floating-point input.
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
    digests = set()
    for done, batch in enumerate(batches(single), 1):
        tell(done)
        if done - 1 not in measured:
            continue
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(batch.feed.items()):
            digest.update(np.ascontiguousarray(array).data)
            if array.dtype.kind == "f":
                values = array[np.isfinite(array)].astype(np.float64)
                terms = (values.size, float(values.sum()), float(np.square(values).sum()))
                sums[name] = [old + new for old, new in zip(sums.get(name, (0, 0, 0)), terms, strict=True)]
        digests.add(digest.digest())
    return Look(
        samples=len(single),
        same=len(single) > 1 and len(digests) == 1,
        moments={name: _moments(*each) for name, each in sums.items() if each[0]},
    )


def _moments(count: float, total: float, squares: float) -> tuple[float, float]:
    """Return the mean and the standard deviation of `count` values from their sum and the sum of their squares."""
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean * mean, 0.0))


def unlike(calib: Look, data: Look) -> list[str]:
    """Return a sentence for each input whose values differ so much that one of both is likely preprocessed wrongly.

    The standard deviations differ by a factor, or the means by more than the larger of the deviations.
    """
    sentences = []
    for name in calib.moments.keys() & data.moments.keys():
        (mean, width), (other_mean, other_width) = calib.moments[name], data.moments[name]
        narrow, wide = sorted((width, other_width))
        if wide > _WIDER * narrow or abs(mean - other_mean) > wide:
            sentences.append(
                f"the calibration samples are unlike those to compare on: the values of {name} have mean {mean:.3g} "
                f"and standard deviation {width:.3g}, the others {other_mean:.3g} and {other_width:.3g}. If they are "
                "preprocessed in another way, the scales are wrong"
            )
    return sorted(sentences)
