"""Work on several items at once, with the results in order.

Touches: starts threads, and ends them; asks the system for its cores.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Return the number of cores that this process may use; those of the machine, where the system does not tell.

    It is not more than `OMP_NUM_THREADS`, which schedulers set to the cores of a task.
    """
    limit = thread_limit()
    return min(_cores(), limit) if limit else _cores()


def thread_limit() -> int:
    """Return `OMP_NUM_THREADS`, or 0 if it is not set."""
    value = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(value) if value.isdigit() else 0


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `work(item)` of every item, in order. An error is raised when the iteration reaches its item.

    `workers` threads work, at most one item ahead of the consumer each, so that memory does not grow with the number
    of items. One worker is the calling thread.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="trtopt-work") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
