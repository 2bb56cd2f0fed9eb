"""Timing of targets over batch sizes: at each size all targets in turns, then each one alone for the GPU's readings.

Touches: nothing itself; the targets run models, `gpu` reads the machine.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from trtopt.bench import gpu, intervals
from trtopt.bench.latency import Run, Series, measure
from trtopt.bench.targets import Target
from trtopt.data.dataset import Feed
from trtopt.engine import Times
from trtopt.events import Emit, Progress
from trtopt.marks import marked
from trtopt.types import Timing

_ALONE = 1.0
"""Seconds that a target runs alone before the GPU is read: NVML averages utilization and power over up to a second."""
_READ_FOR = 0.5
"""Seconds during which the GPU is then read."""
_SPLIT_RUNS = 20
"""Runs whose parts are timed: the copies, and the computation between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Batch sizes of a sweep, approximate seconds per target and batch size, and a function that returns the inputs."""

    batches: tuple[int, ...]
    seconds: float
    feed: Callable[[Target, int], Feed]


def sweep(targets: Sequence[Target], plan: Plan, device: gpu.Gpu | None, emit: Emit) -> Iterator[tuple[Timing, ...]]:
    """Yield the timings of each batch size in turn, in the order of the targets.

    A target whose inputs must be copied to a device has two timings: without the copies, and with them.

    Args:
        targets: the loaded targets. The first one is the reference of all speedups.
        plan: batch sizes, time and inputs.
        device: the GPU to read while targets run; None for no readings.
        emit: receives the progress.

    Raises:
        OutOfMemoryError: a batch does not fit; the timings yielded before remain valid.
        DataError: a target cannot be run.
    """
    for index in range(len(plan.batches)):
        with marked(f"batch {plan.batches[index]}"):
            point = _point(targets, plan, index, device, emit)
        yield point


def _point(targets: Sequence[Target], plan: Plan, index: int, device: gpu.Gpu | None, emit: Emit) -> tuple[Timing, ...]:
    """Return the timings at one batch size.

    It is a function of its own so that its buffers are released before those of the next batch size are allocated.
    """
    batch = plan.batches[index]
    variants = [variant for target in targets for variant in _variants(target, batch, plan.feed(target, batch))]

    def tick(done: int, total: int) -> None:
        emit(Progress("bench", index * total + done, len(plan.batches) * total, f"batch {batch}"))

    all_series = measure([variant.run for variant in variants], plan.seconds, tick)
    timings = []
    for variant, series in zip(variants, all_series, strict=True):
        reference = _reference(variant, variants, all_series)
        timings.append(_timing(variant, series, reference, _readings(variant, series, device)))
    return tuple(timings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """Target at one batch size, timed with or without copies between host and device."""

    target: str
    batch: int
    copies: bool
    run: Run
    parts: Callable[[], Times]


def _variants(target: Target, batch: int, feed: Feed) -> list[_Variant]:
    """Return the variants of a target: without copies, then with copies if it needs any."""
    ways = target.session.ways(feed)
    plain = _Variant(target=target.name, batch=batch, copies=False, run=ways.plain, parts=ways.parts)
    return [plain, replace(plain, copies=True, run=ways.with_copies)] if ways.with_copies else [plain]


def _reference(variant: _Variant, variants: Sequence[_Variant], all_series: Sequence[Series]) -> Series | None:
    """Return the series of the first target that a speedup compares with; None for the first target itself.

    If both targets have copies or neither has, it is the variant with the same copies. Otherwise one of them runs on
    the host, and it is the variant that includes copies if the first target has them: the time that its callers wait.
    """
    if variant.target == variants[0].target:
        return None
    of_first = [i for i, other in enumerate(variants) if other.target == variants[0].target]
    same_kind = sum(other.target == variant.target for other in variants) == len(of_first)
    return all_series[of_first[variant.copies] if same_kind else of_first[-1]]


def _readings(variant: _Variant, series: Series, device: gpu.Gpu | None) -> dict[str, float]:
    """Return the readings of a variant, by the names of `trtopt.bench.READINGS`."""
    readings = {"cpu_cores": series.cores}
    memory = gpu.resident()
    if memory:
        readings["process_memory"] = float(memory)
    if device is not None:
        # NVML averages over the past, in which other targets ran: run this one alone before reading.
        _repeat(variant.run, _ALONE)
        with gpu.sampling(device) as sampled:
            _repeat(variant.run, _READ_FOR)
        readings |= sampled.summary()
    return readings


def _repeat(run: Run, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run()


def _timing(variant: _Variant, series: Series, reference: Series | None, readings: dict[str, float]) -> Timing:
    """Summarize a series; the speedup is NaN without a reference."""
    values, bounds = intervals.summary(series.blocks), dict(intervals.bounds(series.blocks))
    speedup = math.nan
    if reference is not None:
        speedup = float(reference.blocks.mean()) / values["mean"]
        bounds["speedup"] = intervals.ratio(reference.blocks, series.blocks)
    return Timing(
        target=variant.target,
        batch=variant.batch,
        copies=variant.copies,
        iterations=series.blocks.size,
        mean=values["mean"],
        p50=values["p50"],
        p90=values["p90"],
        p95=values["p95"],
        p99=values["p99"],
        noise=intervals.noise(series.blocks),
        throughput=variant.batch * 1000 / values["mean"],
        readings=readings,
        bounds=bounds,
        speedup=speedup,
        parts=_parts(variant),
    )


def _parts(variant: _Variant) -> dict[str, float]:
    """Return the median times of the copies and of the computation in milliseconds; empty without copies."""
    if not variant.copies:
        return {}
    runs = [variant.parts() for _ in range(_SPLIT_RUNS)]
    return {part.name: statistics.median(getattr(run, part.name) for run in runs) for part in fields(Times)}
