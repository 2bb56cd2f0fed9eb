"""Dataset as the rest of the pipeline sees it: samples by index, each a complete feed of the model.

Touches: nothing itself; `load` reads the files of the data source.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trtopt.data.recipe import ImageRecipe

Array = npt.NDArray[np.generic]
Feed = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassList:
    """The list that labels index: its length `count`, and a description of it, `what`."""

    count: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How a report shows samples to people.

    `names` are those of classes, by index. `image` is the recipe that turned images into arrays, and `text` returns the
    text that sample i was made from; both are None for other sources.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    image: ImageRecipe | None = None
    text: Callable[[int], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Samples that are fed `size` at a time, because the model's batch is fixed.

    `single` are the samples as they were before. Row i of each array of a feed belongs to the i-th of its `members`.
    The last feed is filled up with samples that do not count.
    """

    size: int
    single: Dataset

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of single samples."""
        return self.single.ids

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The labels of single samples."""
        return self.single.labels

    def members(self, feed: int) -> tuple[int, ...]:
        """Return the indices of the samples in a feed, without those that only fill it up."""
        return tuple(range(feed * self.size, min((feed + 1) * self.size, len(self.ids))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples for calibration or evaluation.

    Attributes:
        source: where the samples come from, as the user wrote it.
        digest: SHA-256 of the content and of the recipe, but not of the labels.
        ids: the name of each sample: a file name, or `calib.npz[3]`.
        load: returns sample i as a feed: one array per model input, of that input's dtype and rank.
        batched: true when the first axis of every array is a batch axis of size 1, so samples may be joined along it.
            Otherwise each sample is fed on its own (for example, to a model whose first axis is time).
        labels: the class index of each sample, if the source has labels.
        class_list: the list that labels index, if it is known. It must have as many classes as the model has scores.
        shapes: the distinct shapes of the samples. Each entry has one shape per model input, in the inputs' order.
        groups: the samples in each feed, if the model's batch is fixed above 1. Index i then refers to a feed, not to a
            single sample, and labels are in `groups` only.
        shown: what a report needs to show the samples.
        on_demand: whether the user's code makes a sample each time that it is loaded.
        notes: facts to report to the user, such as what was assumed.
        warnings: what may be wrong with the samples or their use.
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
    shown: Shown = Shown()
    on_demand: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def samples(self) -> int:
        """Number of single samples, also if they are fed in groups."""
        return len(self.groups.ids) if self.groups else len(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One or more samples joined along the first axis of every input, and their `indices` in the dataset."""

    indices: tuple[int, ...]
    feed: Mapping[str, Array]


def batches(dataset: Dataset, size: int = 1, *, workers: int = 4, among: range | None = None) -> Iterator[Batch]:
    """Yield every sample once, in order, in batches of `size`; with `among`, only these consecutive ones.

    The last batch may be smaller. Batches have one sample unless `dataset.batched`.
    `workers` threads load samples at most `2 * workers + size` ahead of the consumer, so that memory does not grow with
    the number of samples. An error in `load` is raised when the iteration reaches its sample.
    """
    size = size if dataset.batched else 1
    wanted = range(len(dataset)) if among is None else among
    with ThreadPoolExecutor(workers, thread_name_prefix="trtopt-data") as pool:
        pending = deque(pool.submit(dataset.load, i) for i in wanted[: 2 * workers + size])
        ahead = len(pending)
        try:
            for start in range(0, len(wanted), size):
                indices = tuple(wanted[start : start + size])
                feeds = []
                for _ in indices:
                    feeds.append(pending.popleft().result())
                    if ahead < len(wanted):
                        pending.append(pool.submit(dataset.load, wanted[ahead]))
                        ahead += 1
                yield Batch(indices=indices, feed=joined(feeds))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def part(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """Return the feeds at these positions as a dataset without labels, for what needs inputs only."""
    ids = tuple(dataset.ids[index] for index in indices)
    return replace(dataset, ids=ids, load=lambda i: dataset.load(indices[i]), labels=None, groups=None)


def unlabelled(dataset: Dataset) -> Dataset:
    """Return the dataset without its labels."""
    groups = dataset.groups and replace(dataset.groups, single=unlabelled(dataset.groups.single))
    return replace(dataset, labels=None, groups=groups)


def spread(length: int, count: int) -> list[int]:
    """Return at most `count` indices below `length`, evenly spread: images of one class often follow one another."""
    return list(dict.fromkeys(np.linspace(0, length - 1, min(count, length)).astype(int).tolist()))


def selected(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """Return the single samples at these positions. If samples are fed in groups, these are put into groups anew.

    So the same samples are selected for every batch of a model.
    """
    if dataset.groups:
        return grouped(selected(dataset.groups.single, indices), dataset.groups.size)
    chosen = tuple(indices)
    return replace(
        dataset,
        digest=hashlib.sha256(f"{dataset.digest} {chosen}".encode()).hexdigest(),
        ids=tuple(dataset.ids[i] for i in chosen),
        load=lambda i: dataset.load(chosen[i]),
        labels=None if dataset.labels is None else tuple(dataset.labels[i] for i in chosen),
    )


def first(dataset: Dataset, count: int) -> Dataset:
    """Return the first `count` single samples. If samples are fed in groups, the feeds are those of the dataset.

    The samples of the last feed that are behind do not count.
    """
    if not dataset.groups:
        return selected(dataset, range(count))
    single, size = selected(dataset.groups.single, range(count)), dataset.groups.size
    return replace(
        dataset, digest=single.digest, ids=dataset.ids[: -(-count // size)], groups=Groups(size=size, single=single)
    )


def grouped(dataset: Dataset, size: int) -> Dataset:
    """Return the samples as feeds of `size` samples each."""
    groups, count = Groups(size=size, single=dataset), len(dataset)
    members = [groups.members(feed) for feed in range(-(-count // size))]

    def load(feed: int) -> Feed:
        # The last feed is filled up with the first samples, not with copies of the last one: calibration measures whole
        # feeds, and no sample should weigh much more there than another.
        return joined([dataset.load(i % count) for i in range(feed * size, (feed + 1) * size)])

    return replace(
        dataset,
        ids=tuple(f"{dataset.ids[places[0]]} to {dataset.ids[places[-1]]}" for places in members),
        load=load,
        batched=False,
        labels=None,
        shapes=tuple(tuple((size, *shape[1:]) for shape in fed) for fed in dataset.shapes),
        groups=groups,
    )


def scattered(dataset: Dataset) -> Dataset:
    """Return the samples in an order of which the first 8, 16, 32, ... are spread evenly over them.

    The order is that of the reversed bits of their positions.
    """
    bits = (dataset.samples - 1).bit_length()
    return selected(dataset, sorted(range(dataset.samples), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2)))


def joined(feeds: Sequence[Feed]) -> Feed:
    """Return the feeds as one, joined along the batch axis."""
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
