"""Parts of an output that differ in scale, each compared by itself.

In the raw head of a detector, `[n, 4 + classes, anchors]`, boxes in pixels are a thousand times larger than class
scores: pooled over the whole output, every error of the scores is lost. The channels along an axis are therefore
grouped by scale: where the RMS of one is ten times that of the next smaller, a part ends. Each part has its own cosine.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.compare.kinds.noise import similarity
from trtopt.compare.kinds.outputs import Floats, are_probabilities

GAP = 10.0
"""Ratio of RMS between neighbours, ordered by size, at which a part ends: pooled, 20 dB hide anything."""

MAX_CHANNELS = 1024
"""Longer axes are positions (anchors, pixels, words of a vocabulary), and their sums would take memory."""

LEAST_SHARE = 0.1
"""A smaller share of the channels is a few dead ones, not a part; probabilities are one whatever their share."""

SURE = 0.5
"""Probabilities that never get this far decide nothing."""

HARMLESS = 0.05
"""An error of a probability that nobody acts on."""

_Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some channels along `axis` of the output (its batch axis is axis 0), and the cosine over them."""

    axis: int
    channels: tuple[int, ...]
    cosine: float

    def __str__(self) -> str:
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
    """Sums per channel [4, channels] (x^2, (x - y)^2, x y, y^2), the range of FP32's values, and the largest error."""

    sums: Floats
    low: Floats
    high: Floats
    largest: Floats


class Parts:
    """Accumulates sums per channel along the second and the last axis of an output."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._axes: dict[int, _Channels] = {}

    def add(self, reference: _Array, candidate: _Array) -> None:
        """Add one sample, without a batch axis and free of NaN and Inf."""
        if self._shape is None:
            self._open(reference.shape)
        for axis in [axis for axis in self._axes if reference.ndim != len(self._shape or ())]:
            del self._axes[axis]
        # An axis whose length changes from sample to sample counts positions.
        for axis in [axis for axis in self._axes if reference.shape[axis] != self._axes[axis].sums.shape[1]]:
            del self._axes[axis]
        for axis, channels in self._axes.items() if reference.size else ():
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
        self._shape = shape
        for axis in sorted({0, len(shape) - 1}) if shape else ():
            count = shape[axis]
            if 2 <= count <= MAX_CHANNELS:
                self._axes[axis] = _Channels(
                    sums=np.zeros((4, count)),
                    low=np.full(count, np.inf),
                    high=np.full(count, -np.inf),
                    largest=np.zeros(count),
                )

    def found(self) -> list[Part]:
        """Return the parts that must be compared by themselves: none where all channels are of a similar scale."""
        return [part for axis, channels in self._axes.items() for part in _parts(axis, channels)]


def _parts(axis: int, channels: _Channels) -> list[Part]:
    signal = channels.sums[0]
    order = np.argsort(-signal, kind="stable")
    order = order[signal[order] > 0]  # what is always 0 in FP32 has no scale
    if len(order) < 2 or not np.isfinite(signal).all():
        return []
    ends = np.flatnonzero(signal[order[:-1]] >= GAP**2 * signal[order[1:]]) + 1
    largest, *smaller = np.split(order, ends)
    smaller = [group for group in smaller if _counts(channels, group)]
    return [
        Part(axis=axis + 1, channels=tuple(sorted(group.tolist())), cosine=_cosine(channels, group))
        for group in ([largest, *smaller] if smaller else ())
    ]


def _cosine(channels: _Channels, group: npt.NDArray[np.intp]) -> float:
    signal, error, product, energy = channels.sums[:, group].sum(axis=1).tolist()
    return similarity(signal, error, product, energy)


def _counts(channels: _Channels, group: npt.NDArray[np.intp]) -> bool:
    """Return whether a ruined part would matter."""
    if are_probabilities(np.stack([channels.low[group], channels.high[group]])):
        if channels.largest[group].max() < HARMLESS:
            return False
        if channels.high[group].max() >= SURE:
            return True
    return bool(len(group) >= LEAST_SHARE * channels.sums.shape[1])
