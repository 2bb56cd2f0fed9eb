"""Time targets over batch sizes, side by side: at each batch all of them in turns, then each alone for the readings.

Touches: nothing itself; the targets run models, `gpu` reads the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from trtopt.bench import gpu, intervals
from trtopt.bench.latency import Run, Series, measure
from trtopt.bench.targets import Target
from trtopt.data.dataset import Feed
from trtopt.events import Emit, Progress
from trtopt.types import Timing

_READ_FOR = 1.5
"""Seconds that a target runs alone for the readings: NVML's utilisation is of the last second at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which batch sizes, about how many seconds for each target at each of them, and what a target is fed with."""

    batches: tuple[int, ...]
    seconds: float
    feed: Callable[[Target, int], Feed]


def sweep(targets: Sequence[Target], plan: Plan, device: gpu.Gpu | None, emit: Emit) -> Iterator[tuple[Timing, ...]]:
    """Yield the timings of one batch size after the other, those of a batch in the order of the targets.

    A target whose inputs must be copied to a device has two: without the copies, and with them. `device` is read for
    the GPU's readings.

    Raises:
        OutOfMemoryError: a batch does not fit; what was yielded before holds.
        DataError: a target cannot be run.
    """
    for place, batch in enumerate(plan.batches):
        lanes = [lane for target in targets for lane in _lanes(target, batch, plan.feed(target, batch))]

        def tick(done: int, total: int, place: int = place, batch: int = batch) -> None:
            emit(Progress("bench", place * total + done, len(plan.batches) * total, f"batch {batch}"))

        series = measure([lane.run for lane in lanes], plan.seconds, tick)
        yield tuple(
            _timing(lane, found, first=_first(lane, lanes, series), readings=_readings(lane, found, device))
            for lane, found in zip(lanes, series, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    target: str
    batch: int
    copies: bool
    run: Run


def _lanes(target: Target, batch: int, feed: Feed) -> list[_Lane]:
    ways = target.session.ways(feed)
    plain = _Lane(target=target.name, batch=batch, copies=False, run=ways.plain)
    return [plain, replace(plain, copies=True, run=ways.with_copies)] if ways.with_copies else [plain]


def _first(lane: _Lane, lanes: Sequence[_Lane], series: Sequence[Series]) -> Series | None:
    """The series of the first target that was measured in the same way; None for that one itself."""
    same = [i for i, other in enumerate(lanes) if other.copies == lane.copies]
    return None if lanes[same[0]] is lane else series[same[0]]


def _readings(lane: _Lane, series: Series, device: gpu.Gpu | None) -> dict[str, float]:
    found = {"cpu_cores": series.cores}
    memory = gpu.resident()
    if memory:
        found["process_memory"] = float(memory)
    if device is not None:
        with gpu.sampling(device) as sampled:
            end = time.perf_counter() + _READ_FOR
            while time.perf_counter() < end:
                lane.run()
        found |= sampled.summary()
    return found


def _timing(lane: _Lane, series: Series, *, first: Series | None, readings: dict[str, float]) -> Timing:
    values, bounds = intervals.summary(series.blocks), dict(intervals.bounds(series.blocks))
    speedup = math.nan
    if first is not None:
        speedup = float(first.blocks.mean()) / values["mean"]
        bounds["speedup"] = intervals.ratio(first.blocks, series.blocks)
    return Timing(
        target=lane.target,
        batch=lane.batch,
        copies=lane.copies,
        iterations=series.blocks.size,
        mean=values["mean"],
        p50=values["p50"],
        p90=values["p90"],
        p95=values["p95"],
        p99=values["p99"],
        noise=intervals.noise(series.blocks),
        throughput=lane.batch * 1000 / values["mean"],
        readings=readings,
        bounds=bounds,
        speedup=speedup,
    )
