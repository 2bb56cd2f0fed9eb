"""The measuring loop: warm up, look how much latencies vary, fix how many runs that takes, then run, in turns.

All lanes (targets, with and without copies) are measured together, in rounds: a block of runs of each, forwards in one
round and backwards in the next, so that a drift of the clocks meets them all alike. How many runs a block has is fixed
before the first round: no result decides when to stop.

Touches: nothing itself; a lane runs a model. Time is what the lanes say that they took, but for the share of the cores.
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
"""Rounds, and so blocks of each lane; down to `MIN_BLOCKS` where a run is so slow that the time is up before."""

AIM = 0.01
"""The noise to be reached, where the time allows it."""

_ENOUGH = 600
"""Runs in all, where the time allows them: a bound of the 99th percentile takes 299 independent ones."""

_BLOCK = 25.0
"""Least length of a block (ms), where the time allows it: what disturbs a machine for shorter falls into one block."""

_STABLE = 0.02
_WINDOW = 20.0
_PILOT = 100
_Z = 1.96
_ALIKE = 4.0
"""How many runs are worth as much as one, it is assumed, since those that follow each other are alike."""

_COLD = 50.0
"""A run that takes longer than that (ms) does not notice whether the caches are warm."""


Run = Callable[[], float]
"""Runs once, to its end, and returns how long that took, in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What was measured of a lane: latencies in ms, float64 [blocks, runs in each]; how many cores were busy."""

    blocks: Floats
    cores: float


def measure(lanes: Sequence[Run], seconds: float, tick: Callable[[int, int], None]) -> list[Series]:
    """Measure the lanes for about `seconds` each, besides as long again at most to warm up.

    A lane whose runs take long gets more: there are `MIN_BLOCKS` runs at least. `tick(done, total)` is told of rounds.
    """
    budget = seconds * 1000
    for lane in lanes:
        warm_up(lane, budget)
    pilots = [_pilot(lane, budget) for lane in lanes]
    rounds = _rounds(pilots, budget)
    sizes = [runs(pilot, budget, rounds) for pilot in pilots]
    settle = [len(lanes) > 1 and statistics.fmean(pilot) < _COLD for pilot in pilots]
    found = [np.empty((rounds, size)) for size in sizes]
    busy, wall = [0.0] * len(lanes), [0.0] * len(lanes)
    order = list(range(len(lanes)))
    for turn in range(rounds):
        for i in order:
            run, block = lanes[i], found[i][turn]
            if settle[i]:  # the lane before it has emptied the caches
                run()
            cpu, start = time.process_time(), time.perf_counter()
            for k in range(sizes[i]):
                block[k] = run()
            busy[i] += time.process_time() - cpu
            wall[i] += time.perf_counter() - start
        order.reverse()
        tick(turn + 1, rounds)
    return [
        Series(blocks=blocks, cores=cpu / max(clock, 1e-9))
        for blocks, cpu, clock in zip(found, busy, wall, strict=True)
    ]


def warm_up(lane: Run, budget: float) -> int:
    """Run until the median of one stretch of runs is within 2 % of the stretch before, for `budget` ms at most.

    Returns how many runs that were: two at least.
    """
    spent, count, before = 0.0, 0, math.nan
    while spent < budget or count < 2:
        window: list[float] = []
        while (sum(window) < _WINDOW or len(window) < 3) and (spent < budget or count < 2):
            took = lane()
            window.append(took)
            spent, count = spent + took, count + 1
        median = statistics.median(window)
        if abs(median - before) <= _STABLE * median:
            break
        before = median
    return count


def runs(pilot: Sequence[float], budget: float, rounds: int) -> int:
    """How many runs each block has, for the pilot's latencies in ms: what `AIM` takes, as far as `budget` reaches."""
    mean = statistics.fmean(pilot)
    variation = statistics.stdev(pilot) / max(mean, 1e-9)
    quiet, long = _ALIKE * (_Z * variation / AIM) ** 2, _BLOCK * rounds / max(mean, 1e-6)
    wanted, affordable = max(_ENOUGH, quiet, long) / rounds, budget / max(mean, 1e-6) / rounds
    return max(1, min(math.ceil(wanted), int(affordable)))


def _pilot(lane: Run, budget: float) -> list[float]:
    found = [lane(), lane()]
    while len(found) < _PILOT and sum(found) < budget / 10:
        found.append(lane())
    return found


def _rounds(pilots: Sequence[Sequence[float]], budget: float) -> int:
    """As many rounds as the slowest lane has time for, and no more than `BLOCKS`."""
    slowest = max(statistics.fmean(pilot) for pilot in pilots)
    return int(min(BLOCKS, max(MIN_BLOCKS, budget / max(slowest, 1e-6))))
