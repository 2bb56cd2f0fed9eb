"""Whether models return one row per sample, so that samples may be run together and measured one by one.

Touches: nothing itself; the runners run models.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trtopt.compare.measures.outputs import Array, is_float
from trtopt.compare.pair import Pair, Runner
from trtopt.data.dataset import Dataset, batches
from trtopt.errors import DataError, OutOfMemoryError

_SAME = 1e-3
"""Largest energy of the difference, relative to the signal, between the results of a sample alone and beside another.

A batch of another size may take other kernels, whose rounding differs."""


def joinable(pair: Pair, dataset: Dataset) -> bool:
    """Return whether samples may be joined: the dataset allows it, and all models return one row per sample.

    A dynamic batch axis of the inputs does not guarantee that: a Reshape in the model may assume a batch of 1 and mix
    joined samples, and the first axis of an output may be time, detections or layers. Runs of one sample and of two
    show which axis grows, and whether the first sample has the same results in both.
    """
    if not dataset.batched or len(dataset) < 2:
        return False
    single, joined = (next(batches(dataset, size, workers=1, among=range(size))).feed for size in (1, 2))
    return all(keeps_rows(runner, single, joined) for runner in pair.runners)


def keeps_rows(runner: Runner, single: Mapping[str, Array], joined: Mapping[str, Array]) -> bool:
    """Return whether a model returns one row per sample: for a sample alone the same as beside another one.

    `joined` is the feed of two samples, of which the first is the one of `single`.
    """
    try:
        alone, together = runner.run(single), runner.run(joined)
    except (DataError, OutOfMemoryError):  # if the sample itself is at fault, running it alone reports it
        return False
    return all(
        array.shape[:1] == (1,) and together[name].shape[:1] == (2,) and _is_same(array, together[name][:1])
        for name, array in alone.items()
    )


def _is_same(alone: Array, joined: Array) -> bool:
    """Return whether the results of a sample agree but for rounding. Only floating-point numbers are compared."""
    if not is_float(alone) or alone.shape != joined.shape:
        return not is_float(alone)
    x, y = np.asarray(alone, np.float64), np.asarray(joined, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)  # NaN and infinity are reported later, with the name of the sample
    return bool(np.square(y[finite] - x[finite]).sum() <= _SAME * np.square(x[finite]).sum())


def apart(pair: Pair, feed: Mapping[str, Array], size: int) -> bool:
    """Return whether every output of both models has one row per sample of a feed of `size` samples."""
    for runner in pair.runners:
        try:
            outputs = runner.run(feed)
        except (DataError, OutOfMemoryError):  # if the sample itself is at fault, running it alone reports it
            return False
        if any(array.shape[:1] != (size,) for array in outputs.values()):
            return False
    return True
