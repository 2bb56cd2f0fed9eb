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

_ALONE = 1.0
"""Seconds that a target runs alone before it is read: utilisation and power are NVML's means over a second at most."""
_READ_FOR = 0.5
"""Seconds that it is then read for."""


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
    for place in range(len(plan.batches)):
        yield _point(targets, plan, place, device, emit)


def _point(targets: Sequence[Target], plan: Plan, place: int, device: gpu.Gpu | None, emit: Emit) -> tuple[Timing, ...]:
    """The timings of one batch size. Its buffers go with the call, before those of the next size are made."""
    batch = plan.batches[place]
    lanes = [lane for target in targets for lane in _lanes(target, batch, plan.feed(target, batch))]

    def tick(done: int, total: int) -> None:
        emit(Progress("bench", place * total + done, len(plan.batches) * total, f"batch {batch}"))

    series = measure([lane.run for lane in lanes], plan.seconds, tick)
    return tuple(
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
    """The series of the first target that was measured in the same way; None for that one itself.

    Where only one of the two has copies to make, it is the one with what a caller of the first target waits for.
    """
    own = [i for i, other in enumerate(lanes) if other.target == lanes[0].target]
    if lane.target == lanes[0].target:
        return None
    is_alike = sum(other.target == lane.target for other in lanes) == len(own)
    return series[own[lane.copies] if is_alike else own[-1]]


def _readings(lane: _Lane, series: Series, device: gpu.Gpu | None) -> dict[str, float]:
    found = {"cpu_cores": series.cores}
    memory = gpu.resident()
    if memory:
        found["process_memory"] = float(memory)
    if device is not None:
        _repeat(lane.run, _ALONE)
        with gpu.sampling(device) as sampled:
            _repeat(lane.run, _READ_FOR)
        found |= sampled.summary()
    return found


def _repeat(run: Run, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run()


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
