"""Statistics of all activations over a small subset of samples, per tensor and for some tensors per channel.

- Magnitudes decide which tensors must not be in a 16-bit type (`precision.passes.keep`).
- Means per channel correct biases (`precision.passes.bias`).
- Ranges and values per channel determine how to equalize channels (`precision.passes.equalize`).

Touches: nothing; it calls the function that runs the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import CalibrationError
from trtopt.events import Emit, Progress
from trtopt.parallel import in_order

MASK = 1e9
"""Magnitudes from here on are ignored: attention masks use them for infinity, and `passes.half` clamps them."""
SAMPLES = 16
"""Size of the subset. It is enough for an order of magnitude, for a mean, and to tell two quantized networks apart by
decibels. More samples would cost too much time."""
VALUES = 32
"""Values per channel that are kept of each sample, to predict the rounding error."""


@dataclass(slots=True)
class Seen:
    """The statistics that `look` collects.

    Attributes:
        ranges: absmax by tensor.
        sizes: number of elements by tensor, in the last sample.
        means: mean per channel by tensor, float64 [channels].
        errors: mean rounding error per channel by tensor, float64 [channels].
        samples: number of samples.
    """

    ranges: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    means: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    errors: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Channels:
    """Ranges and values of one tensor's channels.

    Attributes:
        peaks: absmax per channel, float64 [channels].
        values: values per channel, float32 [channels, n]: at most `VALUES` of each sample, evenly spaced.
    """

    peaks: npt.NDArray[np.float64]
    values: npt.NDArray[np.float32]


class ChannelRanges:
    """Collects ranges and values per channel of the tensors of `axes`, which maps each to its channel axis."""

    def __init__(self, axes: Mapping[str, int]) -> None:
        self.axes = axes
        self._peaks: dict[str, npt.NDArray[np.float64]] = {}
        self._values: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in axes}

    def add(self, tensors: Mapping[str, Array]) -> None:
        """Add the tensors of one sample."""
        for name, axis in self.axes.items():
            # A matrix with one row per channel.
            rows = np.moveaxis(tensors[name], axis, 0).reshape(tensors[name].shape[axis], -1)
            peak = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
            self._peaks[name] = np.maximum(self._peaks.get(name, 0.0), peak)
            positions = np.unique(np.linspace(0, rows.shape[1] - 1, min(VALUES, rows.shape[1])).astype(int))
            self._values[name].append(rows[:, positions].astype(np.float32))

    def result(self) -> dict[str, Channels]:
        """Return the ranges and values of each tensor, over all samples that were added."""
        return {name: Channels(peak, np.concatenate(self._values[name], axis=1)) for name, peak in self._peaks.items()}


def channel_means(array: Array, axis: int) -> npt.NDArray[np.float64]:
    """Return the mean per channel, float64 [channels]. A negative `axis` counts from the end."""
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    return np.asarray(array.mean(axis=others, dtype=np.float64), np.float64)


class Averages:
    """Averages arrays of one shape by name, each over the samples that have it: a tensor may be empty in some."""

    def __init__(self) -> None:
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, values: npt.NDArray[np.float64]) -> None:
        """Add the values of one sample."""
        self._sums[name] = self._sums.get(name, 0.0) + values
        self._counts[name] += 1

    def result(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the average of each name that was added."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def few(dataset: Dataset) -> Dataset:
    """Return the subset of samples that this module uses, as a dataset."""
    indices = _indices(dataset)
    ids = tuple(dataset.ids[index] for index in indices)
    return replace(dataset, ids=ids, load=lambda i: dataset.load(indices[i]), labels=None, groups=None)


def _indices(dataset: Dataset) -> list[int]:
    """Return the indices of at most `SAMPLES` samples.

    They are spread evenly over the dataset, because images of one class often follow one another.
    """
    return [int(i) for i in np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int))]


def look(
    run: Callable[[Feed], Mapping[str, Array]],
    dataset: Dataset,
    channels: Mapping[str, int],
    roundings: Mapping[str, Callable[[Array], Array]] = MappingProxyType({}),
    *,
    emit: Emit,
    callers: int = 1,
) -> Seen:
    """Return statistics of the inputs and of all float32 tensors that `run` returns, over at most `SAMPLES` samples.

    Args:
        run: returns the tensors of a feed by name.
        dataset: the samples; a subset is spread evenly over it.
        channels: the channel axis of each tensor whose means per channel are computed.
        roundings: for some of these tensors, the function that returns the rounding error of each value.
        emit: receives the progress of the stage `observe`.
        callers: number of threads that load and run samples.

    Raises:
        CalibrationError: a tensor is NaN or infinite; the message names the tensor and the sample.
    """

    def load_and_run(index: int) -> Mapping[str, Array]:
        feed = dataset.load(index)
        return {**feed, **run(feed)}

    indices = _indices(dataset)
    seen = Seen(samples=len(indices))
    means, errors = Averages(), Averages()
    for done, tensors in enumerate(in_order(load_and_run, indices, callers), start=1):
        for name, array in tensors.items():
            if array.dtype != np.float32 or array.size == 0:
                continue
            absmax = float(np.abs(array).max())  # NaN and infinity propagate
            if not np.isfinite(absmax):
                raise CalibrationError(
                    f"tensor {name} holds NaN or Inf for sample {dataset.ids[indices[done - 1]]}",
                    why="the FP32 model itself does not stay finite on it",
                    fix="Check the sample and its preprocessing",
                )
            if absmax >= MASK:
                magnitude = np.abs(array)
                absmax = float(magnitude[magnitude < MASK].max(initial=0.0))
            seen.ranges[name] = max(seen.ranges.get(name, 0.0), absmax)
            seen.sizes[name] = array.size
            if name in channels:
                means.add(name, channel_means(array, channels[name]))
            if name in channels and name in roundings:
                errors.add(name, channel_means(roundings[name](array), channels[name]))
        emit(Progress("observe", done, len(indices)))
    seen.means, seen.errors = means.result(), errors.result()
    return seen
