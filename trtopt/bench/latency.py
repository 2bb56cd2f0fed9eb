"""Measuring loop: warm up, run a pilot to estimate the variation, fix the number of runs, then measure in turns.

All targets are measured together, in rounds. A round has one block of runs of each target, in forward order in one
round and in backward order in the next, so that clock drift affects all targets equally. The pilot fixes the number of
runs per block before the first round: no measured result decides when to stop.

Touches: nothing itself; a run executes a model and returns its own duration. Only CPU time is measured here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trtopt.bench.intervals import MIN_BLOCKS, Floats

BLOCKS = 20
"""Number of rounds, and so of blocks per target; as few as `MIN_BLOCKS` if runs are too slow for the time available."""

AIM = 0.01
"""Relative half width of the mean's confidence interval to aim for, if the time allows."""

_MIN_RUNS = 600
"""Total runs to aim for, if the time allows: an upper bound of the 99th percentile needs 299 independent runs."""

_BLOCK_MS = 25.0
"""Shortest block to aim for, if the time allows: any shorter disturbance then falls into one block or two."""

_STABLE = 0.02
"""Relative change between the medians of two windows below which the warm-up ends."""
_WINDOW_MS = 20.0
_PILOT_RUNS = 100
_Z = 1.96  # 97.5th percentile of the normal distribution
_DESIGN_EFFECT = 4.0
"""Assumed number of successive runs that carry the information of one independent run, as they are correlated."""

_CACHE_MS = 50.0
"""Duration of a run above which cold caches make no noticeable difference."""


Run = Callable[[], float]
"""Function that runs a target once to completion and returns the duration in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Latencies of one target in ms, float64 [blocks, runs per block], and the mean number of busy CPU cores."""

    blocks: Floats
    cores: float


def measure(targets: Sequence[Run], seconds: float, tick: Callable[[int, int], None]) -> list[Series]:
    """Measure all targets in turns, and return their series in the same order.

    Args:
        targets: functions to time. A target that is timed with and without copies counts as two.
        seconds: approximate measuring time per target. Warming up takes at most as long again. A slow target takes
            longer, as it has at least `MIN_BLOCKS` runs.
        tick: called with (rounds done, rounds in total) after each round.
    """
    budget = seconds * 1000
    for run in targets:
        warm_up(run, budget)
    pilots = [_pilot(run, budget) for run in targets]
    rounds = _rounds(pilots, budget)
    block_sizes = [runs(pilot, budget, rounds) for pilot in pilots]
    # The target before has evicted this one's data from the caches: one untimed run brings it back.
    needs_untimed_run = [len(targets) > 1 and statistics.fmean(pilot) < _CACHE_MS for pilot in pilots]
    latencies = [np.empty((rounds, size)) for size in block_sizes]
    cpu_seconds, wall_seconds = [0.0] * len(targets), [0.0] * len(targets)
    order = list(range(len(targets)))
    for turn in range(rounds):
        for i in order:
            run, block = targets[i], latencies[i][turn]
            if needs_untimed_run[i]:
                run()
            # CPU time of all threads. Divided by the wall time it is the number of busy cores.
            cpu, start = time.process_time(), time.perf_counter()
            for k in range(block_sizes[i]):
                block[k] = run()
            cpu_seconds[i] += time.process_time() - cpu
            wall_seconds[i] += time.perf_counter() - start
        order.reverse()  # so that linear drift of the clocks cancels over two rounds
        tick(turn + 1, rounds)
    return [
        Series(blocks=blocks, cores=cpu / max(wall, 1e-9))
        for blocks, cpu, wall in zip(latencies, cpu_seconds, wall_seconds, strict=True)
    ]


def warm_up(run: Run, budget: float) -> int:
    """Run a target until the medians of two successive windows of runs differ by at most 2 %.

    Args:
        run: the function to time.
        budget: longest time to spend, in ms. Two runs are made in any case.

    Returns:
        The number of runs.
    """
    spent, count, previous_median = 0.0, 0, math.nan
    while spent < budget or count < 2:
        window: list[float] = []
        while (sum(window) < _WINDOW_MS or len(window) < 3) and (spent < budget or count < 2):
            latency = run()
            window.append(latency)
            spent, count = spent + latency, count + 1
        median = statistics.median(window)
        # False for the first window: comparisons with NaN are.
        if abs(median - previous_median) <= _STABLE * median:
            break
        previous_median = median
    return count


def runs(pilot: Sequence[float], budget: float, rounds: int) -> int:
    """Return the number of runs per block that reaches `AIM`, or as many as `budget` allows.

    Args:
        pilot: latencies of the pilot, in ms.
        budget: measuring time, in ms.
        rounds: number of blocks.
    """
    mean = statistics.fmean(pilot)
    variation = statistics.stdev(pilot) / max(mean, 1e-9)
    # The half width of the interval is _Z * variation / sqrt(runs) for independent runs.
    for_precision = _DESIGN_EFFECT * (_Z * variation / AIM) ** 2
    for_block_length = _BLOCK_MS * rounds / max(mean, 1e-6)
    wanted = max(_MIN_RUNS, for_precision, for_block_length) / rounds
    affordable = budget / max(mean, 1e-6) / rounds
    return max(1, min(math.ceil(wanted), int(affordable)))


def _pilot(run: Run, budget: float) -> list[float]:
    """Return the latencies of a few runs: at least two, then up to a tenth of the budget."""
    latencies = [run(), run()]
    while len(latencies) < _PILOT_RUNS and sum(latencies) < budget / 10:
        latencies.append(run())
    return latencies


def _rounds(pilots: Sequence[Sequence[float]], budget: float) -> int:
    """Return as many rounds as the slowest target has time for, between `MIN_BLOCKS` and `BLOCKS`."""
    slowest = max(statistics.fmean(pilot) for pilot in pilots)
    return int(min(BLOCKS, max(MIN_BLOCKS, budget / max(slowest, 1e-6))))
