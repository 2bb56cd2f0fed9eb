"""Batches on a runner, several at a time, with their results in order.

An engine has one run in flight per CUDA stream: while one stream copies, another one computes. onnxruntime on the CPU
is called by several threads.

Touches: the runner; starts threads, and ends them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from trtopt.errors import TrtoptError
from trtopt.predict.answers import Array
from trtopt.predict.batching import Batch
from trtopt.predict.pauses import Pauses

Outcome = Mapping[str, Array] | TrtoptError


class Runner(Protocol):
    """Anything that runs a model. It may have `submit` and `collect`, as `engine.runner.engine.EngineRunner`."""

    @property
    def where(self) -> str:
        """Description of the runtime and the device."""
        ...

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs for one feed, by name."""
        ...


class Lanes:
    """Runs batches on a runner.

    Args:
        runner: the runner.
        streams: the number of batches at a time.
        least: the smallest batch that the model runs; smaller ones are filled up with copies of their last sample.
        rowed: the outputs whose first axis is that of the samples.
    """

    def __init__(self, runner: Runner, *, streams: int, least: int, rowed: frozenset[str]) -> None:
        self._runner: Any = runner
        self._streams, self._least, self._rowed = streams, least, rowed
        self._again: deque[Batch] = deque()
        self._pending: deque[tuple[Batch, Callable[[], Outcome]]] = deque()

    def again(self, *batches: Batch) -> None:
        """Run these batches before any other."""
        self._again.extend(batches)

    def run(self, batches: Iterator[Batch], pauses: Pauses | None = None) -> Iterator[tuple[Batch, Outcome]]:
        """Yield every batch with its outputs, or with the error of running it.

        When a pause is due, it begins once no batch is in flight.
        """
        submits = hasattr(self._runner, "submit")
        # One batch waits in the pool's queue, so that no thread idles while the caller joins the next one.
        most = self._streams if submits else self._streams + 1
        with ThreadPoolExecutor(self._streams, thread_name_prefix="trtopt-predict") as pool:
            start = self._submitted if submits else lambda feed: self._called(pool, feed)
            try:
                while True:
                    if not self._pending and pauses is not None and pauses.due:
                        pauses.wait()
                    while len(self._pending) < most and not (pauses is not None and pauses.due):
                        batch = self._again.popleft() if self._again else next(batches, None)
                        if batch is None:
                            break
                        self._pending.append((batch, start(padded(batch.feed, self._least))))
                    if not self._pending:
                        return
                    batch, result = self._pending.popleft()
                    yield batch, self._rows(result(), len(batch.rows))
            finally:
                pool.shutdown(cancel_futures=True)

    def _submitted(self, feed: Mapping[str, Array]) -> Callable[[], Outcome]:
        try:
            self._runner.submit(feed)
        except TrtoptError as error:
            refused = error
            return lambda: refused
        return lambda: _caught(lambda: self._runner.collect().outputs)

    def _called(self, pool: ThreadPoolExecutor, feed: Mapping[str, Array]) -> Callable[[], Outcome]:
        return pool.submit(_caught, lambda: self._runner.run(feed)).result

    def _rows(self, outcome: Outcome, rows: int) -> Outcome:
        """Return the outputs without the rows that fill up the batch."""
        if isinstance(outcome, TrtoptError):
            return outcome
        return {name: array[:rows] if name in self._rowed else array for name, array in outcome.items()}


def padded(feed: Mapping[str, Array], least: int) -> Mapping[str, Array]:
    """Return a feed of at least that many samples, filled up with copies of the last one."""
    missing = least - min((len(array) for array in feed.values()), default=least)
    if least <= 1 or missing <= 0:
        return feed
    return {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()}


def _caught(run: Callable[[], Mapping[str, Array]]) -> Outcome:
    try:
        return run()
    except TrtoptError as error:
        return error
