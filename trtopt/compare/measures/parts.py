"""Parts of an output that differ in scale, each with its own cosine.

In the raw head of a detector, `[n, 4 + classes, anchors]`, boxes in pixels are a thousand times larger than class
scores, so a metric over the whole output hides every error of the scores. The channels along an axis are therefore
sorted by RMS and split into parts wherever the RMS drops by a factor of ten or more.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.noise import similarity
from trtopt.compare.measures.outputs import Floats, are_probabilities

GAP = 10.0
"""Ratio of RMS between neighbours, sorted by RMS, at which a part ends: a difference of 20 dB hides all errors."""

MAX_CHANNELS = 1024
"""Limit on the length of an axis. Longer ones are positions (anchors, pixels, tokens), and would take memory."""

LEAST_SHARE = 0.1
"""Least fraction of the channels in a part: fewer are a few dead channels. Probabilities are a part regardless."""

SURE = 0.5
"""Probabilities that never reach this value do not affect any decision."""

HARMLESS = 0.05
"""Largest error of a probability that has no consequence."""

_Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Channels along `axis` of the output (axis 0 is the batch), and the cosine over them."""

    axis: int
    channels: tuple[int, ...]
    cosine: float

    def __str__(self) -> str:
        """Return the channels as ranges, such as `0-3, 7`."""
        first = last = self.channels[0]
        runs = []
        for channel in (*self.channels[1:], -1):
            if channel == last + 1:
                last = channel
                continue
            runs.append(f"{first}-{last}" if last > first else f"{first}")
            first = last = channel
        more = f" and {len(self.channels)} in all" if len(runs) > 3 else ""
        return ", ".join(runs[:3]) + more


@dataclass(slots=True)
class _Channels:
    """Statistics per channel.

    `sums` [4, channels] are those of x^2, (x - y)^2, x y and y^2. `low` and `high` [channels] are the range of FP32's
    values, and `largest` [channels] the largest absolute error.
    """

    sums: Floats
    low: Floats
    high: Floats
    largest: Floats


class Parts:
    """Accumulator of sums per channel along the axes of an output."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._axes: dict[int, _Channels] = {}

    def add(self, reference: _Array, candidate: _Array) -> None:
        """Add one sample, without a batch axis and without NaN or Inf."""
        if self._shape is None:
            self._open(reference.shape)
        if reference.ndim != len(self._shape or ()):
            self._axes.clear()
        for axis in list(self._axes):
            # An axis whose length differs between samples is one of positions, not of channels.
            if reference.shape[axis] != self._axes[axis].sums.shape[1]:
                del self._axes[axis]
        if not reference.size:
            return
        for axis, channels in self._axes.items():
            x = np.moveaxis(reference, axis, 0).reshape(reference.shape[axis], -1).astype(np.float64)
            y = np.moveaxis(candidate, axis, 0).reshape(reference.shape[axis], -1).astype(np.float64)
            error = x - y
            with np.errstate(over="ignore", invalid="ignore"):
                pairs = ((x, x), (error, error), (x, y), (y, y))
                channels.sums += np.stack([np.einsum("ij,ij->i", a, b) for a, b in pairs])
            np.minimum(channels.low, x.min(axis=1), out=channels.low)
            np.maximum(channels.high, x.max(axis=1), out=channels.high)
            np.maximum(channels.largest, np.abs(error).max(axis=1), out=channels.largest)

    def _open(self, shape: tuple[int, ...]) -> None:
        """Start the sums for the axes of an output whose samples have this shape."""
        self._shape = shape
        if not shape:
            return
        spatial = _spatial(shape)
        for axis, count in enumerate(shape):
            if 2 <= count <= MAX_CHANNELS and axis not in spatial:
                self._axes[axis] = _Channels(
                    sums=np.zeros((4, count)),
                    low=np.full(count, np.inf),
                    high=np.full(count, -np.inf),
                    largest=np.zeros(count),
                )

    def found(self) -> list[Part]:
        """Return the parts that must be compared separately; none if all channels are of similar scale."""
        return [part for axis, channels in self._axes.items() for part in _parts(axis, channels)]


def _spatial(shape: tuple[int, ...]) -> set[int]:
    """Return the two axes that are the height and the width of a map; none if there is no map.

    They are the neighbours of the most similar lengths, beside a third axis. The border of a map may be empty, which
    makes it a part of another scale, but not one that matters.
    """
    pairs = [(axis, axis + 1) for axis in range(len(shape) - 1) if min(shape[axis], shape[axis + 1]) >= 8]
    if len(shape) < 3 or not pairs:
        return set()
    ratio, pair = min((max(shape[a], shape[b]) / min(shape[a], shape[b]), (a, b)) for a, b in pairs)
    return set(pair) if ratio <= 2 else set()


def _parts(axis: int, channels: _Channels) -> list[Part]:
    signal = channels.sums[0]
    order = np.argsort(-signal, kind="stable")
    order = order[signal[order] > 0]  # a channel that is always 0 in FP32 does not have a scale
    if len(order) < 2 or not np.isfinite(signal).all():
        return []
    ends = np.flatnonzero(signal[order[:-1]] >= GAP**2 * signal[order[1:]]) + 1
    largest, *smaller = np.split(order, ends)
    smaller = [group for group in smaller if _matters(channels, group)]
    if not smaller:
        return []
    return [
        Part(axis=axis + 1, channels=tuple(sorted(group.tolist())), cosine=_cosine(channels, group))
        for group in (largest, *smaller)
    ]


def _cosine(channels: _Channels, group: npt.NDArray[np.intp]) -> float:
    signal, error, product, energy = channels.sums[:, group].sum(axis=1).tolist()
    return similarity(signal, error, product, energy)


def _matters(channels: _Channels, group: npt.NDArray[np.intp]) -> bool:
    """Return whether errors in this group of channels would have consequences."""
    if are_probabilities(np.stack([channels.low[group], channels.high[group]])):
        if channels.largest[group].max() < HARMLESS:
            return False
        if channels.high[group].max() >= SURE:
            return True
    return bool(len(group) >= LEAST_SHARE * channels.sums.shape[1])
