"""Predictions for the samples of a shard, block by block.

Touches: the runner; the journal; reads the samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from trtopt.data.dataset import Dataset, Feed
from trtopt.errors import DataError, OutOfMemoryError, TrtoptError
from trtopt.events import Emit
from trtopt.predict.answers import Answers, Field, choose
from trtopt.predict.batching import Governor, Sample, joined
from trtopt.predict.block import Block, block_rows
from trtopt.predict.formats import Format
from trtopt.predict.journal import Journal, Layout
from trtopt.predict.lanes import Lanes
from trtopt.predict.pace import Pace
from trtopt.predict.pauses import Pauses
from trtopt.predict.probe import Model, Probe, probe
from trtopt.shards.shard import Shard

_LOADERS = 4
_ROOM = 32
"""Share of the free memory, as its reciprocal, that inputs and outputs of the largest batch may take: activations take
many times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A data set, the part of it to predict, and how.

    `answers` is the kind of answer; `classes` are the names of the classes, if they are known. `most` is the largest
    batch.
    """

    dataset: Dataset
    shard: Shard
    answers: str
    classes: Sequence[str] = ()
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Means of a run besides its work.

    Attributes:
        free: returns the free memory of the device in bytes, or 0 if it is not known.
        emit: receives the progress.
        tell: is called with remarks on batch and pauses.
        pauses: waits while another service needs the GPU.
    """

    free: Callable[[], int]
    emit: Emit
    tell: Callable[[str], None]
    pauses: Pauses | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The blocks of a shard, all written.

    Attributes:
        rows: the number of rows.
        failed: how many of them have no answer.
        rate: samples per second of this process.
        resumed: rows that an earlier process had written.
        numbers: the numbers of the blocks.
        fields: the columns.
        answers: the kind of answer.
    """

    rows: int
    failed: int
    rate: float
    resumed: int
    numbers: range
    fields: tuple[Field, ...]
    answers: str


def predict(model: Model, work: Work, journal: Journal, format: Format, tools: Tools) -> Done:
    """Write every block of the shard that the journal lacks.

    Raises:
        DataError: no sample can be loaded and run.
        UsageError: the model does not give these answers.
        OutOfMemoryError: a single sample does not fit in memory.
        StoreError: the journal cannot be written.
    """
    probed = probe(model, work.dataset)
    answers = choose(work.answers, probed.outputs, probed.rowed, work.classes)
    if journal.layout is None:
        journal.begin(_layout(model, work, answers, probed, tools))
    layout = journal.layout
    assert layout is not None
    numbers, done = blocks_of(work.dataset, work.shard, layout.rows), journal.done()
    sizes = {number: len(rows_of(work.dataset, number, layout.rows)) for number in numbers}
    already = sum(sizes[number] for number in numbers if number in done)
    pace = Pace(total=sum(sizes.values()), done=already, emit=tools.emit)
    governor = Governor(layout.batch, tools.free, tools.tell)
    lanes = Lanes(model.runner, streams=model.streams, least=model.least, rowed=probed.rowed)
    begun: deque[Block] = deque()
    writing: list[Future[None]] = []  # at most one

    def write_complete(pool: ThreadPoolExecutor) -> None:
        while begun and begun[0].complete:
            block = begun.popleft()
            pace.add(len(block.ids))
            if writing:
                writing.pop().result()
            fill = partial(format.write, block, layout.fields)
            writing.append(pool.submit(journal.write, block.number, len(block.errors), fill))

    missing = [number for number in numbers if number not in done]
    with (
        # The disk takes milliseconds for a block: the network runs on meanwhile.
        ThreadPoolExecutor(1, thread_name_prefix="trtopt-rows") as writer,
        closing(_loaded(work.dataset, missing, layout, begun)) as samples,
    ):
        for batch, outcome in lanes.run(joined(samples, governor, joinable=probed.joinable), tools.pauses):
            if not isinstance(outcome, TrtoptError):
                batch.block.fill(batch.rows, answers, outcome)
            elif len(batch.rows) > 1 and isinstance(outcome, DataError | OutOfMemoryError):
                if isinstance(outcome, OutOfMemoryError):
                    governor.halve(outcome.why or outcome.what)
                lanes.again(*batch.halves())
            elif isinstance(outcome, DataError):
                batch.block.fail(batch.rows[0], str(outcome))
            else:
                raise outcome
            write_complete(writer)
        write_complete(writer)
        for each in writing:
            each.result()
    failed = journal.done()
    return Done(
        rows=pace.total,
        failed=sum(failed[number] for number in numbers),
        rate=pace.rate if missing else 0.0,
        resumed=already,
        numbers=numbers,
        fields=layout.fields,
        answers=answers.name,
    )


def blocks_of(dataset: Dataset, shard: Shard, rows: int) -> range:
    """Return the numbers of the blocks of a shard: a shard is made of whole blocks."""
    return shard.of(-(-len(dataset) // rows))


def rows_of(dataset: Dataset, number: int, rows: int) -> range:
    """Return the indices of the samples of a block."""
    return range(number * rows, min((number + 1) * rows, len(dataset)))


def _layout(model: Model, work: Work, answers: Answers, probed: Probe, tools: Tools) -> Layout:
    """Return the columns, the rows per block, and the largest batch for the memory that is free now."""
    row_bytes = sum(array.nbytes for array in probed.outputs.values()) if answers.name == "raw" else 0
    rows, most = block_rows(row_bytes), work.most
    if free := tools.free():
        most = min(most, max(1, free // _ROOM // max(probed.bytes, 1)))
    return Layout(fields=answers.fields, rows=rows, batch=model.fixed or min(rows, most))


def _loaded(
    dataset: Dataset, numbers: Sequence[int], layout: Layout, begun: deque[Block]
) -> Generator[Sample, None, None]:
    """Yield the samples of blocks in order, loaded by threads ahead of their use; blocks are added to `begun`."""
    # A task loads several samples: for arrays in memory, to hand over each one would cost more than to load it.
    together = max(1, layout.batch // _LOADERS)
    ahead = _LOADERS + 2 * layout.batch // together

    def load(indices: range) -> list[Feed | TrtoptError]:
        return [_feed(dataset, index) for index in indices]

    with ThreadPoolExecutor(_LOADERS, thread_name_prefix="trtopt-data") as pool:
        pending: deque[tuple[Block, range, Future[list[Feed | TrtoptError]]]] = deque()

        def oldest() -> Iterator[Sample]:
            block, rows, loading = pending.popleft()
            return (Sample(block=block, row=row, feed=feed) for row, feed in zip(rows, loading.result(), strict=True))

        try:
            for number in numbers:
                indices = rows_of(dataset, number, layout.rows)
                block = Block(number=number, ids=[_printable(dataset.ids[index]) for index in indices])
                begun.append(block)
                for first in range(0, len(indices), together):
                    part = indices[first : first + together]
                    pending.append((block, range(first, first + len(part)), pool.submit(load, part)))
                    if len(pending) > ahead:
                        yield from oldest()
            while pending:
                yield from oldest()
        finally:
            pool.shutdown(cancel_futures=True)


def _feed(dataset: Dataset, index: int) -> Feed | TrtoptError:
    try:
        return dataset.load(index)
    except DataError as error:
        return DataError(error.what, why=error.why, fix=error.fix)  # without the frames of the original


def _printable(name: str) -> str:
    """Return a name with the bytes that are not UTF-8, as a file may have, escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
