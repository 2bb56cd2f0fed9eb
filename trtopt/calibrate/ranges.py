"""Statistics of all activations over a small subset of samples, per tensor and for some tensors per channel.

- Magnitudes decide which tensors must not be in a 16-bit type (`precision.passes.keep`).
- Means per channel correct biases (`precision.passes.bias`).
- Ranges and values per channel determine how to equalize channels (`precision.passes.equalize`).

Touches: nothing; it calls the function that runs the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.histogram import MASK
from trtopt.data.dataset import Array, Dataset, Feed, selected, spread, unlabelled
from trtopt.errors import CalibrationError
from trtopt.events import Emit, Progress
from trtopt.parallel import in_order

SAMPLES = 16
"""Size of the subset. It is enough for an order of magnitude, for a mean, and to tell two quantized networks apart by
decibels. More samples would cost too much time."""
VALUES = 32
"""Values per channel that are kept of each sample, to predict the rounding error."""

Key = tuple[str, int]
"""A tensor and the axis of its channels, which depends on the operator that reads it."""


@dataclass(slots=True)
class Seen:
    """The statistics that `look` collects.

    Attributes:
        ranges: absmax by tensor, without infinities and masks.
        masks: the largest finite magnitude that means infinity, of the tensors that hold one.
        sizes: number of elements by tensor, in the last sample.
        means: mean per channel by tensor and channel axis, float64 [channels].
        errors: mean rounding error per channel by tensor and channel axis, float64 [channels].
        samples: number of samples.
    """

    ranges: dict[str, float] = field(default_factory=dict)
    masks: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    means: dict[Key, npt.NDArray[np.float64]] = field(default_factory=dict)
    errors: dict[Key, npt.NDArray[np.float64]] = field(default_factory=dict)
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The tensors that `look` treats specially.

    Attributes:
        outputs: the names of the model's outputs.
        channels: the tensors, each with a channel axis, whose means per channel are computed.
        roundings: for some of these tensors, the function that returns the rounding error of each value.
    """

    outputs: Collection[str] = ()
    channels: Collection[Key] = ()
    roundings: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)


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
    """Collects ranges and values per channel of the tensors of `axes`, which maps each to its channel axis.

    Each feed holds `per_feed` samples.
    """

    def __init__(self, axes: Mapping[str, int], per_feed: int = 1) -> None:
        self.axes = axes
        self._per_feed = per_feed
        self._peaks: dict[str, npt.NDArray[np.float64]] = {}
        self._values: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in axes}

    def add(self, tensors: Mapping[str, Array]) -> None:
        """Add the tensors of one feed."""
        for name, axis in self.axes.items():
            # A matrix with one row per channel.
            rows = np.moveaxis(tensors[name], axis, 0).reshape(tensors[name].shape[axis], -1)
            peak = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
            self._peaks[name] = np.maximum(self._peaks.get(name, 0.0), peak)
            # The first of the other axes is that of the samples.
            parts = self._per_feed if rows.shape[1] % self._per_feed == 0 else 1
            length = rows.shape[1] // parts
            kept = min(VALUES * self._per_feed // parts, length)
            within = np.unique(np.linspace(0, length - 1, kept).astype(int))
            positions = np.add.outer(np.arange(parts) * length, within).ravel()
            self._values[name].append(rows[:, positions].astype(np.float32))

    def result(self) -> dict[str, Channels]:
        """Return the ranges and values of each tensor, over all samples that were added."""
        return {name: Channels(peak, np.concatenate(self._values[name], axis=1)) for name, peak in self._peaks.items()}


def channel_means(array: Array, axis: int) -> npt.NDArray[np.float64]:
    """Return the mean per channel, float64 [channels]. A negative `axis` counts from the end."""
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
        return np.asarray(array.mean(axis=others, dtype=np.float64), np.float64)


class Averages:
    """Averages of arrays by tensor and axis, each over the samples that have it: a tensor may be empty in some."""

    def __init__(self) -> None:
        self._sums: dict[Key, npt.NDArray[np.float64]] = {}
        self._counts: Counter[Key] = Counter()

    def add(self, key: Key, values: npt.NDArray[np.float64]) -> None:
        """Add the values of one sample, unless they are not finite."""
        if not np.isfinite(values).all():
            return
        self._sums[key] = self._sums.get(key, 0.0) + values
        self._counts[key] += 1

    def result(self) -> dict[Key, npt.NDArray[np.float64]]:
        """Return the average of each tensor and axis that was added."""
        return {key: total / self._counts[key] for key, total in self._sums.items()}


def subset_size(dataset: Dataset) -> int:
    """Return the number of single samples in the subset that this module uses."""
    return min(SAMPLES, dataset.samples)


def few(dataset: Dataset, most: int = SAMPLES) -> Dataset:
    """Return the subset of samples that this module uses, or one of at most `most` samples, without labels.

    The samples are the same if they are fed in groups.
    """
    return selected(unlabelled(dataset), spread(dataset.samples, most))


def look(
    run: Callable[[Feed], Mapping[str, Array]],
    dataset: Dataset,
    wanted: Wanted,
    *,
    emit: Emit,
    callers: int = 1,
) -> Seen:
    """Return statistics of the inputs and of all float32 tensors that `run` returns, over at most `SAMPLES` samples.

    Infinities are legal, and so is NaN, as in a row of scores that is all minus infinity, if no output is NaN.

    Args:
        run: returns the tensors of a feed by name. It must be thread-safe if there are several callers.
        dataset: the samples; a subset is spread evenly over it.
        wanted: the outputs, and the tensors to compute means per channel of.
        emit: receives the progress of the stage `observe`.
        callers: number of threads that load and run samples.

    Raises:
        CalibrationError: an output is NaN; the message names the first tensor that is, and the sample.
    """

    def load_and_run(index: int) -> Mapping[str, Array]:
        feed = samples.load(index)
        return {**feed, **run(feed)}

    samples = few(dataset)
    seen = Seen(samples=subset_size(dataset))
    means, errors = Averages(), Averages()
    axes: dict[str, list[Key]] = {}
    for key in sorted(wanted.channels):
        axes.setdefault(key[0], []).append(key)
    for done, tensors in enumerate(in_order(load_and_run, range(len(samples)), callers), start=1):
        _check(tensors, wanted.outputs, samples.ids[done - 1])
        for name, array in tensors.items():
            if array.dtype != np.float32 or array.size == 0:
                continue
            absmax = float(np.abs(array).max())  # NaN and infinity propagate
            if not absmax < MASK:
                magnitude = np.abs(array)
                absmax = float(magnitude[magnitude < MASK].max(initial=0.0))
                # NaN is not less than infinity, and compares false.
                mask = float(magnitude[magnitude < np.inf].max(initial=0.0))
                if mask >= MASK:
                    seen.masks[name] = max(seen.masks.get(name, 0.0), mask)
            seen.ranges[name] = max(seen.ranges.get(name, 0.0), absmax)
            seen.sizes[name] = array.size
            for key in axes.get(name, ()):
                means.add(key, channel_means(array, key[1]))
                if name in wanted.roundings:
                    errors.add(key, channel_means(wanted.roundings[name](array), key[1]))
        emit(Progress("observe", done, len(samples)))
    seen.means, seen.errors = means.result(), errors.result()
    return seen


def _check(tensors: Mapping[str, Array], outputs: Collection[str], sample: str) -> None:
    """Raise CalibrationError if an output is NaN; the message names the first tensor that is."""
    if any(name in tensors and _is_nan(tensors[name]) for name in outputs):
        raise CalibrationError(
            f"tensor {next(name for name, array in tensors.items() if _is_nan(array))} holds NaN for sample {sample}",
            why="the FP32 model itself computes NaN on it",
            fix="Check the sample and its preprocessing",
        )


def _is_nan(array: Array) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())
