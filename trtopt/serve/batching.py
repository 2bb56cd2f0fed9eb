"""Largest batch, waiting time and number of instances of a served model, from what was measured of it.

A request that arrives just after a batch has started waits for that batch, then up to the delay for others to join, and
then for its own batch. So the time to an answer is at most the delay plus twice the time of the largest batch.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trtopt.errors import UsageError
from trtopt.types import BatchLimit, Timing
from trtopt.wording import counted

_MOST_INSTANCES = 2
"""Two instances overlap the copies of one with the computation of the other. More take memory and add nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """How requests wait for each other: the largest batch, the delay in microseconds, and the reason for both."""

    largest: int
    delay_us: int
    why: str


def queue(largest: int, timings: Sequence[Timing], limit_ms: float) -> Queue:
    """Return the largest batch and the delay that keep a latency limit.

    Args:
        largest: the largest batch that the model runs.
        timings: the bench table of the run; with copies if there are such rows, because a server copies.
        limit_ms: limit of the time to an answer in milliseconds; infinite without one.

    Raises:
        UsageError: there is a limit and no table, or twice the time of batch 1 exceeds the limit.
    """
    times = _times(timings, largest)
    if not times:
        if math.isfinite(limit_ms):
            raise UsageError(
                "--latency-limit needs timings", why="the run has no bench table", fix="Run trtopt bench RUN first"
            )
        return Queue(largest=largest, delay_us=0, why="no delay: the run has no bench table")
    fitting = {batch: time for batch, time in times.items() if 2 * time <= limit_ms}
    if not fitting:
        batch, time = min(times.items())
        raise UsageError(
            f"--latency-limit {limit_ms:g}ms cannot be kept",
            why=f"batch {batch} takes {time:.3g} ms at p99, and a request may wait for another batch before its own",
            fix=f"Raise it to {2 * time:.3g}ms or more, or serve a faster model",
        )
    batch = max(fitting)
    # Batches between two measured sizes may be slower than the limit allows.
    best = largest if len(fitting) == len(times) else batch
    if not math.isfinite(limit_ms):
        # Requests that arrive while a batch runs form the next one, also without a delay.
        return Queue(largest=best, delay_us=0, why="no delay: no latency limit was given")
    # To wait longer than a batch takes gains nothing: the requests that arrive during it form the next one.
    delay = min(limit_ms - 2 * fitting[batch], fitting[min(fitting)])
    why = f"batch {batch} takes {fitting[batch]:.3g} ms at p99; twice that and the delay are within {limit_ms:g} ms"
    return Queue(largest=best, delay_us=math.floor(delay * 1000), why=why)


def _times(timings: Sequence[Timing], largest: int) -> dict[int, float]:
    """Return the p99 of each batch in milliseconds, with copies where that was measured."""
    rows = sorted((timing for timing in timings if timing.batch <= largest), key=lambda timing: timing.copies)
    return {timing.batch: timing.p99 for timing in rows}


def instances(limit: BatchLimit | None, largest: int, priorities: int) -> tuple[int, str]:
    """Return the number of instances on a GPU, and the reason.

    Args:
        limit: the memory that `trtopt bench --max-batch` measured; None without it.
        largest: the largest batch that will be served.
        priorities: the number of priority levels; 0 without them.
    """
    if priorities:
        # Measured with server 2.51: 25 requests to one instance took 1 to 2 s, and 0.04 to 0.2 s to two.
        return _MOST_INSTANCES, "two instances: with priorities, a single one idles up to 0.5 s between batches"
    if limit is None or limit.device == "cpu":
        return 1, "one instance: the memory of the model on a GPU was not measured"
    each = limit.bytes_fixed + largest * limit.bytes_per_sample
    if each <= 0:
        return 1, "one instance: the measured memory is not known"
    fits = min(math.floor(limit.memory_limit / each), _MOST_INSTANCES)
    described = f"{each / 2**20:,.0f} MiB at batch {largest} of {limit.memory_limit / 2**20:,.0f} MiB"
    return max(fits, 1), f"{counted(max(fits, 1), 'instance')}: each takes {described}"
