"""The models of a fleet and the GPUs that it has: memory and time of each model, as functions of the batch.

Touches: nothing.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

from trtopt.types import Timing

MB = 1_000_000
_LEVELS = (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of a model on a GPU in bytes: weights once, and for each instance a context and activations per sample."""

    weights: int
    context: int
    per_sample: float

    def needed(self, batch: int, instances: int) -> int:
        """Return the bytes that some instances of a batch need on one GPU, rounded up to MB."""
        exact = self.weights + instances * (self.context + math.ceil(batch * self.per_sample))
        return -(-exact // MB) * MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Time of one batch size in milliseconds: its mean, and percentiles."""

    batch: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    def at(self, level: float) -> float:
        """Return the quantile at a level from 0 to 1, linear between the percentiles that are known."""
        first, last = self.p50 - (self.p90 - self.p50), self.p99 + (self.p99 - self.p95)
        values = (max(first, self.p50 / 2), self.p50, self.p90, self.p95, self.p99, last)
        points = tuple(zip(_LEVELS, values, strict=True))
        right = next(i for i in range(1, len(points)) if level <= points[i][0])
        (low, first), (high, last) = points[right - 1 : right + 1]
        return first + (last - first) * (level - low) / (high - low)


def constant(batch: int, milliseconds: float) -> Time:
    """Return the time of a batch that always takes the same."""
    return Time(batch=batch, mean=milliseconds, p50=milliseconds, p90=milliseconds, p95=milliseconds, p99=milliseconds)


def measured(timings: tuple[Timing, ...]) -> tuple[Time, ...]:
    """Return the times of a bench table, with copies where those were measured: a server copies."""
    rows = {timing.batch: timing for timing in sorted(timings, key=lambda timing: timing.copies)}
    return tuple(
        Time(batch=batch, mean=row.mean, p50=row.p50, p90=row.p90, p95=row.p95, p99=row.p99)
        for batch, row in sorted(rows.items())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A model, and what it must serve.

    Attributes:
        name: its name in the repository.
        rate: requests per second, of one sample each.
        priority: its importance; 1 is the most important.
        limit: limit of the p99 of the time to an answer in milliseconds; infinite without one.
        memory: its memory.
        times: its time by batch, ascending, on a GPU of its own.
        largest: the largest batch that it runs; 0 if it has no batch axis.
        share: the part of a GPU that one running instance occupies.
        instances: the number of instances for the strategy `fixed`.
        budget: the most memory for the strategy `fixed`, in bytes; 0 without a limit.
        urgent: the part of its requests that are sent with priority 1 and go first.
    """

    name: str
    rate: float
    memory: Memory
    times: tuple[Time, ...]
    largest: int
    priority: int = 1
    limit: float = math.inf
    share: float = 1.0
    instances: int = 1
    budget: int = 0
    urgent: float = 0.0

    def time(self, batch: int) -> float:
        """Return the mean time of a batch in milliseconds, linear between the batches that are known."""
        return self._between(batch, lambda row: row.mean)

    def slow(self, batch: int) -> float:
        """Return the p99 of the time of a batch in milliseconds."""
        return self._between(batch, lambda row: row.p99)

    def quantile(self, batch: int, level: float) -> float:
        """Return the quantile of the time of a batch at a level from 0 to 1, in milliseconds."""
        return self._between(batch, lambda row: row.at(level))

    def _between(self, batch: int, value: Callable[[Time], float]) -> float:
        right = bisect.bisect_left(self.times, batch, key=lambda row: row.batch)
        if right == len(self.times) or right == 0 or self.times[right].batch == batch:
            return value(self.times[min(right, len(self.times) - 1)])
        low, high = self.times[right - 1], self.times[right]
        part = (batch - low.batch) / (high.batch - low.batch)
        return value(low) + part * (value(high) - value(low))

    def batches(self) -> tuple[int, ...]:
        """Return the batch sizes to choose from: those that were measured, and powers of 2 between them."""
        if not self.largest:
            return (1,)
        most = min(self.largest, self.times[-1].batch)
        known = {row.batch for row in self.times} | {2**i for i in range(most.bit_length())} | {most}
        return tuple(sorted(batch for batch in known if batch <= most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU, or a slice of one.

    Attributes:
        device: what Docker calls it, such as `0`, or `0:1` for the second slice of the first GPU.
        name: its product name, with the profile of a slice.
        memory: in bytes.
        speed: the part of the computation of the whole GPU that it has.
        profile: the profile of a slice, such as `3g.40gb`; empty for a whole GPU.
    """

    device: str
    name: str
    memory: int
    speed: float = 1.0
    profile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Models, GPUs, and the bytes that a server process takes on each GPU before it loads a model."""

    demands: tuple[Demand, ...]
    gpus: tuple[Gpu, ...]
    process: int

    def free(self, gpu: int) -> int:
        """Return the bytes of a GPU for models, rounded down to MB; negative if the server itself does not fit."""
        return (self.gpus[gpu].memory - self.process) // MB * MB

    def demand(self, name: str) -> Demand:
        """Return the model of a name."""
        return next(each for each in self.demands if each.name == name)
