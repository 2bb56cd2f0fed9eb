"""What a few samples tell about every tensor: its largest magnitude, and for some more about each channel.

The magnitudes decide what 16-bit types must not hold (`precision.keep`), the means of the channels correct biases
(`precision.bias`), their ranges and values say how to equalize them (`precision.equalize`).

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

MASK = 1e9
"""A value at least this large is a mask's stand-in for infinity, which `precision.half` clamps: it is no magnitude."""
SAMPLES = 16
"""Enough for an order of magnitude, for a mean, and to tell two quantized networks apart by decibels; not cheap."""
VALUES = 32
"""Values of each channel that are kept of a sample, to predict what rounding does to them."""


@dataclass(slots=True)
class Seen:
    """What `look` saw: `ranges[t]` the largest magnitude, `sizes[t]` the elements, `means[t]` the mean of each channel,
    `errors[t]` the mean of what rounding does to it.

    Means are float64 [channels]; `samples` is how many ran.
    """

    ranges: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    means: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    errors: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Channels:
    """One tensor's channels: the largest magnitude of each, float64 [channels], and values, float32 [channels, n].

    The values are at most `VALUES` of each sample, evenly spread over its positions.
    """

    peaks: npt.NDArray[np.float64]
    values: npt.NDArray[np.float32]


def channels(
    run: Callable[[Feed], Mapping[str, Array]], dataset: Dataset, axes: Mapping[str, int]
) -> dict[str, Channels]:
    """What a few samples show of each channel of the tensors of `axes` (tensor -> axis of the channels)."""
    peaks: dict[str, npt.NDArray[np.float64]] = {}
    values: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in axes}
    for index in _indices(dataset):
        outputs = run(dataset.load(index))
        for name, axis in axes.items():
            rows = np.moveaxis(outputs[name], axis, 0).reshape(outputs[name].shape[axis], -1)
            peak = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, 0.0), peak)
            kept = np.unique(np.linspace(0, rows.shape[1] - 1, min(VALUES, rows.shape[1])).astype(int))
            values[name].append(rows[:, kept].astype(np.float32))
    return {name: Channels(peaks[name], np.concatenate(values[name], axis=1)) for name in axes}


def channel_means(array: Array, axis: int) -> npt.NDArray[np.float64]:
    """The mean of each channel, float64 [channels]; `axis` may count from the end."""
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
    """The samples that this module looks at, as a dataset of their own."""
    indices = _indices(dataset)
    ids = tuple(dataset.ids[index] for index in indices)
    return replace(dataset, ids=ids, load=lambda i: dataset.load(indices[i]), labels=None, groups=None)


def _indices(dataset: Dataset) -> list[int]:
    """At most `SAMPLES` samples, spread evenly over the dataset (pictures of one class follow one another)."""
    return [int(i) for i in np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int))]


def look(
    run: Callable[[Feed], Mapping[str, Array]],
    dataset: Dataset,
    channels: Mapping[str, int],
    roundings: Mapping[str, Callable[[Array], Array]] = MappingProxyType({}),
    *,
    stage: str,
    emit: Emit,
) -> Seen:
    """Return what is seen in the float32 tensors that `run` gives, and in the inputs themselves.

    `channels[t]` is the axis of the channels whose means are wanted, and `roundings[t]` gives what rounding adds to
    each value. The samples, at most `SAMPLES`, are spread evenly over the dataset.

    Raises:
        CalibrationError: a tensor holds NaN or Inf; the tensor and the sample are named.
    """
    indices = _indices(dataset)
    seen = Seen(samples=len(indices))
    means, errors = Averages(), Averages()
    for done, index in enumerate(indices, start=1):
        feed = dataset.load(index)
        for name, array in {**feed, **run(feed)}.items():
            if array.dtype != np.float32 or array.size == 0:
                continue
            largest = float(np.abs(array).max())  # NaN and Inf propagate
            if not np.isfinite(largest):
                raise CalibrationError(
                    f"tensor {name} holds NaN or Inf for sample {dataset.ids[index]}",
                    why="the FP32 model itself does not stay finite on it",
                    fix="Check the sample and its preprocessing",
                )
            if largest >= MASK:
                magnitude = np.abs(array)
                largest = float(magnitude[magnitude < MASK].max(initial=0.0))
            seen.ranges[name] = max(seen.ranges.get(name, 0.0), largest)
            seen.sizes[name] = array.size
            if name in channels:
                means.add(name, channel_means(array, channels[name]))
            if name in channels and name in roundings:
                errors.add(name, channel_means(roundings[name](array), channels[name]))
        emit(Progress(stage, done, len(indices)))
    seen.means, seen.errors = means.result(), errors.result()
    return seen
