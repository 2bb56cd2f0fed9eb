"""A dataset as the rest of the pipeline sees it: samples by index, each one a complete feed of the model.

Touches: nothing itself; `load` reads the files that the reader found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Feed = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassList:
    """A list of classes that labels are places in: `count` classes, which are `what`, in words."""

    count: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Samples that are fed `size` at a time, because the model's batch is fixed: their own `ids` and `labels`.

    Row i of each array of a feed is that of the i-th of its `members`. The rows that the last feed lacks are filled
    with samples from the start.
    """

    size: int
    ids: tuple[str, ...]
    labels: tuple[int, ...] | None = None

    def members(self, feed: int) -> tuple[int, ...]:
        """Return the indices of the samples that a feed holds, without those that only fill it."""
        return tuple(range(feed * self.size, min((feed + 1) * self.size, len(self.ids))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples for calibration or evaluation.

    Attributes:
        source: where they are from, as the user wrote it.
        digest: SHA-256 of the content and of the recipe, but not of the labels.
        ids: the name of each sample: a file name, or `calib.npz[3]`.
        load: returns sample i as a feed: one array per model input, already of that input's dtype and rank.
        batched: the first axis of every array is a batch axis of size 1, and samples may be joined along it. Otherwise
            a sample is fed on its own (for a model whose first axis is time, say).
        labels: the class index of each sample, where the source has labels.
        class_list: the list that labels are places in, if so: right only for a model with as many scores.
        shapes: the different shapes that samples have, each as the model's inputs are fed, in their order.
        groups: the samples in each feed, where the model's batch is fixed above 1. A feed is then what is called a
            sample above; labels are in `groups` only.
        notes: assumptions that the reader made and that the user must be told.
    """

    source: str
    digest: str
    ids: tuple[str, ...]
    load: Callable[[int], Feed]
    batched: bool
    labels: tuple[int, ...] | None = None
    class_list: ClassList | None = None
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    groups: Groups | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One or more samples joined along the first axis of every input; `indices` are their places in the dataset."""

    indices: tuple[int, ...]
    feed: Mapping[str, Array]


def batches(dataset: Dataset, size: int = 1, *, workers: int = 4) -> Iterator[Batch]:
    """Yield every sample once, in order, `size` at a time (fewer in the last batch; 1 when not `dataset.batched`).

    Samples are loaded by `workers` threads, at most `2 * workers + size` ahead of the consumer, so that memory does not
    grow with the number of samples. An error in `load` is raised here, at its sample.
    """
    size = size if dataset.batched else 1
    with ThreadPoolExecutor(workers, thread_name_prefix="trtopt-data") as pool:
        pending = deque(pool.submit(dataset.load, i) for i in range(min(len(dataset), 2 * workers + size)))
        ahead = len(pending)
        try:
            for start in range(0, len(dataset), size):
                indices = tuple(range(start, min(start + size, len(dataset))))
                feeds = []
                for _ in indices:
                    feeds.append(pending.popleft().result())
                    if ahead < len(dataset):
                        pending.append(pool.submit(dataset.load, ahead))
                        ahead += 1
                yield Batch(indices=indices, feed=_join(feeds))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _join(feeds: list[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
