"""A load test: requests at fixed rates, whatever the server does, and their latencies.

A request is due at a fixed time. Its latency counts from then, also if it was sent later because others had not been
answered: so a server that falls behind cannot hide it (Tene, "How NOT to Measure Latency": coordinated omission).

Touches: the network.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trtopt.bench.intervals import MIN_BLOCKS, PERCENTILES, Floats, bounds, summary
from trtopt.data.dataset import Feed
from trtopt.serve.client import Client, Extras, RequestError
from trtopt.types import Interval

_WORKERS = 256
"""Requests that can wait for an answer at the same time."""
_LATE_MS = 10.0
"""A request that this machine sends later than that says nothing about the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateResult:
    """Requests at one rate.

    Attributes:
        rate: requests per second that were due.
        sent: the number of requests.
        answered: the number of right answers.
        throughput: answers per second.
        latency: mean, p50, p90, p95, p99 and max in milliseconds, of answered requests; NaN without any.
        bounds: one-sided 95 % bounds of the mean and the percentiles.
        errors: the number of requests by message of the server.
        late: p90 of how much later than due this machine was ready to send, in milliseconds.
    """

    rate: float
    sent: int
    answered: int
    throughput: float
    latency: Mapping[str, float]
    bounds: Mapping[str, Interval]
    errors: Mapping[str, int]
    late: float

    @property
    def is_late(self) -> bool:
        """True if this machine, and not the server, limits the rate."""
        return self.late > _LATE_MS

    def holds(self, limit_ms: float) -> bool:
        """Return whether all requests were answered, and the p99 is within a limit."""
        return not self.errors and self.latency["p99"] <= limit_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests to send in turn, the model that they are for, and for how long; the times are in seconds.

    `poisson`: they are due at random times, as those of many independent clients, instead of in even steps.
    """

    model: str
    feeds: Sequence[Feed]
    seconds: float
    timeout: float
    poisson: bool = False


def at_rate(client: Client, traffic: Traffic, rate: float) -> RateResult:
    """Send requests at a rate, and return what came back.

    Args:
        client: the connection.
        traffic: what to send.
        rate: requests per second.
    """
    count = max(round(rate * traffic.seconds), 1)
    latencies, late = np.full(count, np.nan), np.zeros(count)
    errors: Counter[str] = Counter()

    def send(number: int, moment: float) -> None:
        left = traffic.timeout - (time.perf_counter() - moment)
        try:
            if left <= 0:
                raise RequestError(f"no answer within {traffic.timeout:g} s")
            client.infer(traffic.model, traffic.feeds[number % len(traffic.feeds)], Extras(timeout=left))
            latencies[number] = (time.perf_counter() - moment) * 1000
        except RequestError as error:
            errors[str(error)] += 1

    moments = due(count, rate, traffic)
    start = time.perf_counter()
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(min(_WORKERS, count)) as pool:
        try:
            for number in range(count):
                moment = start + moments[number]
                time.sleep(max(moment - time.perf_counter(), 0))
                late[number] = (time.perf_counter() - moment) * 1000
                waiting.append(pool.submit(send, number, moment))
            for each in waiting:
                each.result()
        except BaseException:  # Ctrl-C must not wait for what was not sent
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    elapsed = max(time.perf_counter() - start, count / rate)
    answered = latencies[np.isfinite(latencies)]
    return RateResult(
        rate=rate,
        sent=count,
        answered=len(answered),
        throughput=len(answered) / elapsed,
        latency=_latency(answered),
        bounds=_bounds(answered),
        errors=dict(errors.most_common()),
        late=float(np.percentile(late, 90)),
    )


def due(count: int, rate: float, traffic: Traffic) -> Floats:
    """Return when requests are due, in seconds: the same ones in every test."""
    if not traffic.poisson:
        return np.arange(count) / rate
    return np.sort(np.random.default_rng(count).uniform(0, count / rate, count))


def _latency(answered: Floats) -> dict[str, float]:
    """Return the mean, the percentiles and the maximum."""
    if not len(answered):
        return dict.fromkeys(("mean", *(f"p{percent}" for percent in PERCENTILES), "max"), math.nan)
    return {**summary(answered[np.newaxis]), "max": float(answered.max())}


def _bounds(answered: Floats) -> Mapping[str, Interval]:
    """Return one-sided 95 % bounds; infinite with too few answers. Neighbors in time are in one block."""
    size = len(answered) // (2 * MIN_BLOCKS)
    if size == 0:
        unknown = Interval(low=0.0, high=math.inf)
        return dict.fromkeys(("mean", *(f"p{percent}" for percent in PERCENTILES)), unknown)
    return bounds(answered[: len(answered) // size * size].reshape(-1, size))


def breaks(results: Sequence[RateResult], limit_ms: float) -> tuple[float, float]:
    """Return the highest rate that holds a limit below which none breaks it, and the lowest that breaks it.

    Either is 0 without such a rate.
    """
    held = 0.0
    for each in sorted(results, key=lambda result: result.rate):
        if not each.holds(limit_ms):
            return held, each.rate
        held = each.rate
    return held, 0.0
