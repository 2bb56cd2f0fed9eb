"""Batches: samples of one shape, joined, as many as memory allows.

Touches: nothing itself; a `Governor` calls the function that reads the free memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trtopt.data.dataset import Feed
from trtopt.errors import TrtoptError
from trtopt.predict.answers import Array
from trtopt.predict.block import Block

TIGHT = 0.1
"""Share of the memory that was free at the start below which the batch is halved."""
RELAXED = 0.25
"""Share above which it grows again."""
PATIENCE = 4
"""Batches with relaxed memory after which the batch is doubled. It doubles, too, whenever the batch is halved."""
MOST_PATIENCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A loaded sample: its block and row, and its feed or the error of loading it."""

    block: Block
    row: int
    feed: Feed | TrtoptError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one block that run together: their rows, and their feeds joined along the first axis."""

    block: Block
    rows: tuple[int, ...]
    feed: Mapping[str, Array]

    def halves(self) -> tuple[Batch, Batch]:
        """Return the two halves of a batch of more than one sample."""
        middle = (len(self.rows) + 1) // 2
        return self._part(slice(middle)), self._part(slice(middle, None))

    def _part(self, rows: slice) -> Batch:
        return Batch(
            block=self.block, rows=self.rows[rows], feed={name: array[rows] for name, array in self.feed.items()}
        )


class Governor:
    """The size of the next batch. It is halved when memory is tight, and doubled again when memory is free.

    Args:
        most: the largest batch.
        free: returns the free memory in bytes, or 0 if it is not known: then only exhausted memory halves the batch.
        tell: is called with a remark when the size changes.
    """

    def __init__(self, most: int, free: Callable[[], int], tell: Callable[[str], None]) -> None:
        self.size = self._most = most
        self._free, self._tell = free, tell
        self._at_start = free()
        self._relaxed, self._patience = 0, PATIENCE

    def look(self) -> None:
        """Read the memory, and adapt the size of the next batch."""
        free = self._free() if self._at_start else 0
        if self._at_start and free < TIGHT * self._at_start:
            self.halve(f"{free / 2**20:,.0f} MiB of memory are free")
        elif self._at_start and free < RELAXED * self._at_start:
            self._relaxed = 0
        else:
            self._recover()

    def halve(self, why: str) -> None:
        """Halve the size, down to 1."""
        self._relaxed = 0
        if self.size > 1:
            self.size //= 2
            self._patience = min(self._patience * 2, MOST_PATIENCE)
            self._tell(f"batch {self.size}: {why}")

    def _recover(self) -> None:
        self._relaxed += 1
        if self.size < self._most and self._relaxed >= self._patience:
            self._relaxed = 0
            self.size = min(self.size * 2, self._most)
            self._tell(f"batch {self.size}: memory is free again")


def joined(samples: Iterable[Sample], governor: Governor, *, joinable: bool) -> Iterator[Batch]:
    """Yield the samples in batches of one shape and one block; errors of loading go to their block.

    A block's last batches are smaller. Blocks come one after the other.
    """
    waiting: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
    block: Block | None = None
    for sample in samples:
        if block is not None and sample.block is not block:
            yield from _flushed(waiting)
        block = sample.block
        if isinstance(sample.feed, TrtoptError):
            block.fail(sample.row, str(sample.feed))
            continue
        shapes = tuple(array.shape for array in sample.feed.values())
        waiting.setdefault(shapes, []).append(sample)
        alone = not joinable or any(shape[:1] != (1,) for shape in shapes)
        if alone or len(waiting[shapes]) >= governor.size:
            yield _join(waiting.pop(shapes))
            governor.look()
    yield from _flushed(waiting)


def _flushed(waiting: dict[tuple[tuple[int, ...], ...], list[Sample]]) -> Iterator[Batch]:
    while waiting:
        yield _join(waiting.pop(next(iter(waiting))))


def _join(samples: list[Sample]) -> Batch:
    feeds = [sample.feed for sample in samples if not isinstance(sample.feed, TrtoptError)]
    feed = feeds[0] if len(feeds) == 1 else {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
    return Batch(block=samples[0].block, rows=tuple(sample.row for sample in samples), feed=feed)
