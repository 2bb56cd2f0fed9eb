"""Run the FP32 model over the samples on a GPU, many at a time, and count what flows through its tensors there.

As `observe.observe`, with one difference: samples are joined into batches, as a GPU needs them to be busy, and kernels
may sum in another order for another batch size. The tables are those of the CPU up to that, and not bit for bit.

Touches: the memory of the GPU, through what it is given.
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
"""Samples of a run, where data, model and memory allow it: more gain little on the largest GPUs."""
_SAME = 1e-2
"""Largest magnitudes that differ by less are the same, but for the order of sums."""


class Bound(Protocol):
    """A model with one feed bound to buffers on the GPU; `tensors` are its inputs and outputs there, by name."""

    @property
    def tensors(self) -> Mapping[str, GpuTensor]:
        """Inputs and outputs by name."""
        ...

    def copy_in(self, feed: Mapping[str, Array]) -> None:
        """Copy a feed of the same shapes into the buffers; DataError if it has others."""
        ...

    def run(self) -> None:
        """Run the model, and return when its outputs are there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """A model on a GPU. `bind` makes buffers for a feed and runs once; `batch` is the most samples of a run."""

    bind: Callable[[Mapping[str, Array]], Bound]
    gpu: Gpu
    batch: int = BATCH


def observe_on_gpu(
    model: OnGpu, tensors: Sequence[str], dataset: Dataset, *, stage: str, emit: Emit
) -> dict[str, Histogram]:
    """Return a histogram of each of `tensors` over all samples: inputs of the model, or outputs of a `tap`ped copy.

    When the memory does not hold a batch it is halved, with a warning. Samples are joined only if the model keeps them
    apart. Memory does not grow with the number of samples.

    Raises:
        DataError: the dataset is empty.
        CalibrationError: a tensor is NaN or infinite for a sample (both are named), is not of floating-point type, or
            is missing.
        OutOfMemoryError: the memory does not hold one sample.
    """
    if not len(dataset):
        raise DataError(
            f"{dataset.source} holds no samples",
            why="scales are derived from the values that samples produce",
            fix="Give 100 to 500 samples like those of production",
        )
    watch = _Watch(model, tensors, emit)
    size = model.batch if watch.keeps_apart(dataset) else 1
    started = time.perf_counter()
    done = 0
    for batch in batches(dataset, size):
        for rows, largest in watch.count(dict(batch.feed), len(batch.indices)):
            names = [dataset.ids[index] for index in batch.indices[rows]]
            if not all(map(np.isfinite, largest.values())):
                watch.blame(_rows(dict(batch.feed), rows, len(batch.indices)), names)
            done += len(names)
            rate = done / (time.perf_counter() - started)
            emit(Progress(stage, done, len(dataset), f"{rate:.1f} samples/s, {len(names)} a run"))
    return watch.counters.histograms()


class _Watch:
    """Runs feeds and counts the tensors; keeps the buffers of the last shapes."""

    def __init__(self, model: OnGpu, tensors: Sequence[str], emit: Emit) -> None:
        self.counters = Counters(model.gpu, tensors)
        self._names = tuple(dict.fromkeys(tensors))
        self._model, self._emit = model, emit
        self._limit = model.batch
        self._bound: Bound | None = None

    def keeps_apart(self, dataset: Dataset) -> bool:
        """Whether two samples joined give what they give one by one. A dynamic batch axis does not promise that: a
        Reshape inside may have a batch of 1 written into it, and mix what is joined.
        """
        if self._limit < 2 or not dataset.batched or len(dataset) < 2:
            return False
        one, two = (dict(batch.feed) for batch in islice(batches(dataset, workers=1), 2))
        if any(one[name].shape != two[name].shape for name in one):
            return False
        peaks = [self._peaks(feed) for feed in (one, two)]
        try:
            joined = self._peaks({name: np.concatenate([one[name], two[name]]) for name in one})
        except (DataError, OutOfMemoryError):
            return False
        return all(
            # NaN and infinity are told later, with the name of the sample.
            not np.isfinite(peak) or abs(peak - max(p[name] for p in peaks)) <= _SAME * peak
            for name, peak in joined.items()
        )

    def _peaks(self, feed: Feed) -> dict[str, float]:
        self._run(feed)
        peaks = self.counters.add(self._tensors())
        self.counters.clear()
        return peaks

    def count(self, feed: Feed, size: int) -> Iterator[tuple[slice, dict[str, float]]]:
        """Run and count a feed of `size` samples, in pieces that the memory holds; yield each one's place among them
        and the largest magnitudes so far.
        """
        low = 0
        while low < size:
            rows = slice(low, min(low + self._limit, size))
            piece = rows.stop - rows.start
            try:
                self._run(_rows(feed, rows, size))
            except OutOfMemoryError:
                self._bound = None
                if piece == 1:
                    raise
                self._limit = piece // 2
                self._emit(Warned(f"the GPU's memory does not hold {piece} samples a run: {self._limit} from now on"))
                continue
            yield rows, self.counters.add(self._tensors())
            low = rows.stop

    def blame(self, feed: Feed, names: Sequence[str]) -> NoReturn:
        """Raise for the tensor that is NaN or infinite, and for the sample, one of the `names` of a feed."""
        seen = self.counters.histograms()
        for place, name in enumerate(names):
            self.counters.clear()
            self._run(_rows(feed, slice(place, place + 1), len(names)))
            self.counters.add(self._tensors())
            _check(self.counters.histograms(), f"sample {name}")
        _check(seen, f"samples {names[0]} to {names[-1]} in one run, and for none of them alone")
        raise AssertionError("called for finite tensors")

    def _run(self, feed: Feed) -> None:
        bound, self._bound = self._bound, None
        if bound is not None:
            try:
                bound.copy_in(feed)
                bound.run()
                self._bound = bound
            except DataError:  # other shapes, of the feed or, because of the values, of an output
                bound = None  # its memory is needed
        self._bound = self._bound or self._model.bind(feed)

    def _tensors(self) -> dict[str, GpuTensor]:
        known = self._bound.tensors if self._bound else {}
        if missing := [name for name in self._names if name not in known]:
            raise CalibrationError(f"tensor {missing[0]!r} was not observed", why="the model's run did not return it")
        return {name: known[name] for name in self._names}


def _check(histograms: Mapping[str, Histogram], where: str) -> None:
    for tensor, histogram in histograms.items():
        histogram.check(tensor, where)


def _rows(feed: Feed, rows: slice, size: int) -> Feed:
    """Those samples of a feed of `size`; a feed of one is one sample, whatever its first axis is."""
    return feed if size == 1 else {name: array[rows] for name, array in feed.items()}
