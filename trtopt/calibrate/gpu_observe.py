"""Histograms of a model's tensors on a GPU: run the FP32 model over batches of samples and count the values there.

This does the same as `observe.observe`, with one difference. Samples are joined into batches, because a GPU is not busy
otherwise, and kernels may sum in another order for another batch size. Apart from that difference the tables are those
of the CPU; they are not equal bit for bit.

Touches: the memory of the GPU, through the objects that are passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn, Protocol

import numpy as np

from trtopt.calibrate.gpu_histogram import Counters, Gpu, GpuTensor
from trtopt.calibrate.histogram import Histogram
from trtopt.data.dataset import Array, Dataset, Feed, batches
from trtopt.errors import CalibrationError, DataError, OutOfMemoryError
from trtopt.events import Emit, Progress, Warned

BATCH = 64
"""Samples per run, if data, model and memory allow it. Larger batches gain little on the largest GPUs."""
_SAME = 1e-2
"""Relative tolerance within which two absmax values are equal except for the order of summation."""


class Bound(Protocol):
    """A model with one feed bound to buffers on the GPU."""

    @property
    def tensors(self) -> Mapping[str, GpuTensor]:
        """Inputs and outputs on the GPU, by name."""
        ...

    def copy_in(self, feed: Mapping[str, Array]) -> None:
        """Copy a feed into the buffers.

        Raises:
            DataError: the shapes of the feed differ from those of the buffers.
        """
        ...

    def run(self) -> None:
        """Run the model, and return when its outputs are complete."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """A model on a GPU.

    Attributes:
        bind: allocates buffers for a feed and runs the model once.
        gpu: the GPU, for counting.
        batch: the largest number of samples per run.
    """

    bind: Callable[[Mapping[str, Array]], Bound]
    gpu: Gpu
    batch: int = BATCH


def observe_on_gpu(
    model: OnGpu, tensors: Sequence[str], dataset: Dataset, *, stage: str, emit: Emit
) -> dict[str, Histogram]:
    """Return a histogram of each of `tensors` over all samples. Memory does not grow with the number of samples.

    Masks are counted; `Histogram.unmasked` leaves them out. Samples are joined only if the model processes each sample
    of a batch independently. If a batch does not fit in the GPU's memory, the batch size is halved, with a warning.

    Args:
        model: the model, or the copy that `tap` writes.
        tensors: inputs or outputs of the model.
        dataset: the samples.
        stage: the stage that progress is reported for.
        emit: receives progress and warnings.

    Raises:
        DataError: the dataset is empty.
        CalibrationError: a tensor is NaN (the message names the tensor and the sample), its dtype is not
            floating-point, or it is missing.
        OutOfMemoryError: not even one sample fits in the GPU's memory.
    """
    if not len(dataset):
        raise DataError(
            f"{dataset.source} holds no samples",
            why="scales are derived from the values that samples produce",
            fix="Give 100 to 500 samples like those in production",
        )
    observer = _Observer(model, tensors, emit)
    size = model.batch if observer.keeps_samples_independent(dataset) else 1
    started = time.perf_counter()
    done = 0
    for batch in batches(dataset, size):
        for rows, absmax in observer.count(dict(batch.feed), len(batch.indices)):
            names = [dataset.ids[index] for index in batch.indices[rows]]
            if any(map(np.isnan, absmax.values())):
                observer.raise_for_bad_sample(_rows(dict(batch.feed), rows, len(batch.indices)), names)
            done += len(names)
            rate = done / (time.perf_counter() - started)
            emit(Progress(stage, done, len(dataset), f"{rate:.1f} samples/s, batch {len(names)}"))
    return dict(observer.counters.histograms())


class _Observer:
    """Runs feeds and counts the tensors. It keeps the buffers as long as the shapes do not change."""

    def __init__(self, model: OnGpu, tensors: Sequence[str], emit: Emit) -> None:
        self.counters = Counters(model.gpu, tensors)
        self._names = tuple(dict.fromkeys(tensors))
        self._model, self._emit = model, emit
        self._limit = model.batch
        self._bound: Bound | None = None

    def keeps_samples_independent(self, dataset: Dataset) -> bool:
        """Return whether two joined samples give the same absmax values as each of them alone.

        A dynamic batch axis does not guarantee this: a Reshape may have a constant batch of 1 and mix joined samples.
        """
        if self._limit < 2 or not dataset.batched or len(dataset) < 2:
            return False
        first, second = (dict(batch.feed) for batch in islice(batches(dataset, workers=1), 2))
        if any(first[name].shape != second[name].shape for name in first):
            return False
        single = [self._absmax(feed) for feed in (first, second)]
        try:
            joined = self._absmax({name: np.concatenate([first[name], second[name]]) for name in first})
        except (DataError, OutOfMemoryError):
            return False
        for name, absmax in joined.items():
            # NaN and infinity are reported later, with the name of the sample.
            if not np.isfinite(absmax):
                continue
            expected = max(sample[name] for sample in single)
            if not abs(absmax - expected) <= _SAME * absmax:
                return False
        return True

    def _absmax(self, feed: Feed) -> dict[str, float]:
        """Return the absmax of each tensor for one feed. Nothing stays counted."""
        self._run(feed)
        absmax = self.counters.add(self._tensors())
        self.counters.clear()
        return absmax

    def count(self, feed: Feed, size: int) -> Iterator[tuple[slice, dict[str, float]]]:
        """Run and count a feed of `size` samples, in parts that fit in memory.

        Yields:
            For each part, its rows of the feed, and the absmax of each tensor so far.
        """
        low = 0
        while low < size:
            rows = slice(low, min(low + self._limit, size))
            part = rows.stop - rows.start
            try:
                self._run(_rows(feed, rows, size))
            except OutOfMemoryError:
                self._bound = None
                if part == 1:
                    raise
                self._limit = part // 2
                self._emit(Warned(f"out of GPU memory at batch {part}; continuing with batch {self._limit}"))
                continue
            yield rows, self.counters.add(self._tensors())
            low = rows.stop

    def raise_for_bad_sample(self, feed: Feed, names: Sequence[str]) -> NoReturn:
        """Raise an error that names the tensor that is NaN, and the sample.

        Args:
            feed: the feed that produced NaN, just counted.
            names: the names of its samples.
        """
        joined = self.counters.histograms()
        for place, name in enumerate(names):
            self.counters.clear()
            self._run(_rows(feed, slice(place, place + 1), len(names)))
            self.counters.add(self._tensors())
            _check(self.counters.histograms(), f"sample {name}")
        _check(joined, f"samples {names[0]} to {names[-1]} in one batch, but for none of them alone")
        raise AssertionError("called for tensors without NaN")

    def _run(self, feed: Feed) -> None:
        """Run the model on a feed, in the buffers of the last feed if the shapes are the same."""
        bound, self._bound = self._bound, None
        if bound is not None:
            try:
                bound.copy_in(feed)
                bound.run()
                self._bound = bound
            except DataError:
                # The shape of an input has changed, or that of an output that depends on the values.
                bound = None  # frees its memory before new buffers are allocated
        self._bound = self._bound or self._model.bind(feed)

    def _tensors(self) -> dict[str, GpuTensor]:
        """Return the tensors to count, as the last run left them."""
        bound = self._bound.tensors if self._bound else {}
        if missing := [name for name in self._names if name not in bound]:
            raise CalibrationError(f"tensor {missing[0]!r} was not observed", why="the model's run did not return it")
        return {name: bound[name] for name in self._names}


def _check(histograms: Mapping[str, Histogram], where: str) -> None:
    for tensor, histogram in histograms.items():
        histogram.check(tensor, where)


def _rows(feed: Feed, rows: slice, size: int) -> Feed:
    """Return these samples of a feed of `size` samples.

    A feed of one sample is returned as it is, because its first axis may not be a batch axis.
    """
    return feed if size == 1 else {name: array[rows] for name, array in feed.items()}
