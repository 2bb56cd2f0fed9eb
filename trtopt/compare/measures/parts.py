"""Parts of an output that differ in scale, each with its own cosine.

In the raw head of a detector, `[n, 4 + classes, anchors]`, boxes in pixels are a thousand times larger than class
scores, so a metric over the whole output hides every error of the scores. The channels along an axis are therefore
sorted by RMS and split into parts wherever the RMS drops by a factor of ten or more.

Rows and columns of a map, and the values of a flattened output, are channels only if they are those of a detection
head: probabilities beside others that are ten times larger.

Touches: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.noise import similarity
from trtopt.compare.measures.outputs import TOLERANCE, Floats, are_probabilities
from trtopt.compare.measures.partnoise import Group, PartNoise

GAP = 10.0
"""Ratio of RMS between neighbours, sorted by RMS, at which a part ends: a difference of 20 dB hides all errors."""

MAX_CHANNELS = 1024
"""Limit on the length of an axis. Longer ones are positions (anchors, pixels, tokens), and would take memory."""

FOLLOWED = 1 << 16
"""Number of values of a flattened output that are followed: the first ones."""

BOX = 4
"""Number of coordinates of a box."""

_MOST = 0.9
"""Share of the runs of large channels that must be boxes: a coordinate may stay below 1 by chance."""

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


class _Channels:
    """Statistics per channel.

    `sums` [4, channels] are those of x^2, (x - y)^2, x y and y^2. `low` and `high` [channels] are the range of FP32's
    values, and `largest` [channels] the largest absolute error. `head` says that the channels are parts only in a
    detection head, and `flat` that they are the values of a flattened output.
    """

    def __init__(self, count: int, *, head: bool = False, flat: bool = False) -> None:
        self.sums: Floats = np.zeros((4, count))
        self.low: Floats = np.full(count, np.inf)
        self.high: Floats = np.full(count, -np.inf)
        self.largest: Floats = np.zeros(count)
        self._head, self._flat = head, flat
        self.noise = PartNoise(self.split)

    def add(self, x: Floats, y: Floats) -> None:
        """Add one sample, [channels, values]."""
        error = x - y
        with np.errstate(over="ignore", invalid="ignore"):
            pairs = ((x, x), (error, error), (x, y), (y, y))
            sums = np.stack([np.einsum("ij,ij->i", a, b) for a, b in pairs])
            self.sums += sums
        np.minimum(self.low, x.min(axis=1), out=self.low)
        np.maximum(self.high, x.max(axis=1), out=self.high)
        np.maximum(self.largest, np.abs(error).max(axis=1), out=self.largest)
        self.noise.add(sums[:2])

    def split(self) -> list[Group]:
        """Return the parts, the largest signal first; a single one, or none, if all channels are of similar scale.

        A channel that is always 0 in FP32 does not have a scale, and is in none of them.
        """
        signal = self.sums[0]
        order = np.argsort(-signal, kind="stable")
        order = order[signal[order] > 0]
        if len(order) < 2 or not np.isfinite(signal).all():
            return []
        if self._head:
            return self._split_head(order)
        ends = np.flatnonzero(signal[order[:-1]] >= GAP**2 * signal[order[1:]]) + 1
        return np.split(order, ends)

    def _split_head(self, order: Group) -> list[Group]:
        """Return the channels of boxes and those of probabilities; none if they do not look like a head's."""
        likely = (self.low >= -TOLERANCE) & (self.high <= 1 + TOLERANCE)
        groups = [order[~likely[order]], order[likely[order]]]
        if not all(len(group) for group in groups):
            return []
        boxes, scores = (float(self.sums[0, group].mean()) for group in groups)
        return groups if boxes >= GAP**2 * scores and self._are_boxes(np.sort(groups[0])) else []

    def _are_boxes(self, large: Group) -> bool:
        """Return whether the large channels are in fours, as boxes are; a flattened head may also begin with all boxes.

        Neither is true of the rows inside the border of an image, or of the large features of an embedding.
        """
        runs = np.split(large, np.flatnonzero(np.diff(large) != 1) + 1)
        if self._flat and len(runs) == 1 and large[0] == 0:
            return len(large) % BOX == 0
        return sum(len(run) == BOX for run in runs) >= _MOST * len(runs)

    def matters(self, group: Group) -> bool:
        """Return whether errors in this group of channels would have consequences."""
        if are_probabilities(np.stack([self.low[group], self.high[group]])):
            if self.largest[group].max() < HARMLESS:
                return False
            if self.high[group].max() >= SURE:
                return True
        return not self._head and len(group) >= LEAST_SHARE * self.sums.shape[1]

    def cosine(self, group: Group) -> float:
        """Return the cosine over the channels of a group."""
        signal, error, product, energy = self.sums[:, group].sum(axis=1).tolist()
        return similarity(signal, error, product, energy)


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
            if reference.shape[axis] != (self._shape or ())[axis]:
                del self._axes[axis]
        if not reference.size:
            return
        for axis, channels in self._axes.items():
            x, y = (np.moveaxis(array, axis, 0)[:FOLLOWED] for array in (reference, candidate))
            x, y = (array.reshape(len(array), -1).astype(np.float64) for array in (x, y))
            channels.add(x, y)

    def _open(self, shape: tuple[int, ...]) -> None:
        """Start the sums for the axes of an output whose samples have this shape."""
        self._shape = shape
        if len(shape) == 1 and shape[0] > MAX_CHANNELS:
            self._axes[0] = _Channels(min(shape[0], FOLLOWED), head=True, flat=True)
            return
        spatial = _spatial(shape)
        for axis, count in enumerate(shape):
            if 2 <= count <= MAX_CHANNELS:
                self._axes[axis] = _Channels(count, head=axis in spatial)

    def found(self) -> list[Part]:
        """Return the parts that must be compared separately; none if all channels are of similar scale."""
        return [part for axis, channels in self._axes.items() for part in self._parts(axis, channels)]

    def least_sqnr(self) -> float | None:
        """Return the lowest SQNR of a sample in a part, in dB; None if there are no parts."""
        ratios = [
            ratio
            for channels in self._axes.values()
            for group, ratio in channels.noise.ratios()
            if channels.matters(group)
        ]
        if not ratios:
            return None
        return -10.0 * math.log10(max(ratios)) if max(ratios) else math.inf

    def _parts(self, axis: int, channels: _Channels) -> list[Part]:
        largest, *smaller = channels.split() or [np.zeros(0, np.intp)]
        smaller = [group for group in smaller if channels.matters(group)]
        if not smaller:
            return []
        return [
            Part(axis=axis + 1, channels=tuple(np.sort(group).tolist()), cosine=channels.cosine(group))
            for group in (largest, *smaller)
        ]


def _spatial(shape: tuple[int, ...]) -> set[int]:
    """Return the two axes that are the height and the width of a map; none without a map.

    They are the neighbours of the most similar lengths, beside a third axis. The border of a map may be empty, which
    makes it a part of another scale, but not one that matters.
    """
    pairs = [(axis, axis + 1) for axis in range(len(shape) - 1) if min(shape[axis], shape[axis + 1]) >= 8]
    if len(shape) < 3 or not pairs:
        return set()
    ratio, pair = min((max(shape[a], shape[b]) / min(shape[a], shape[b]), (a, b)) for a, b in pairs)
    return set(pair) if ratio <= 2 else set()
