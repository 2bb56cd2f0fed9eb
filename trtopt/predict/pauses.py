"""Pauses while another service on the GPU needs it: `--yield 60%`, `--yield 20ms@http://127.0.0.1:8000/health`.

A utilisation is that of the whole GPU, so it is read while this process runs nothing. A latency is that of a GET
request to the other service.

Touches: NVML, or the network; sleeps.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from trtopt.bench.units import MILLISECONDS, quantity
from trtopt.errors import EnvironmentUnableError, UsageError

EVERY = 5.0
"""Seconds of work between two readings."""
SETTLE = 0.5
"""Seconds without own work before a utilisation is read: NVML reports the mean of about the last sixth of a second."""
AGAIN = 1.0
"""Seconds between readings while another service needs the GPU."""

_FORM = "Write a utilisation, --yield 60%, or a latency of a service, --yield 20ms@http://127.0.0.1:8000/health"
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldLimit:
    """A limit: a utilisation from 0 to 1, or a latency in milliseconds of GET requests to `url`."""

    most: float
    url: str = ""

    def __str__(self) -> str:
        return f"{self.most:g} ms at {self.url}" if self.url else f"a utilisation of {self.most:.0%}"


def parse_limit(text: str) -> YieldLimit:
    """Return the limit of a flag `--yield`.

    Raises:
        UsageError: the text does not parse.
    """
    percent = _PERCENT.fullmatch(text.strip())
    if percent:
        share = float(percent[1]) / 100
        if not 0 < share < 1:
            raise UsageError(f"invalid --yield {text}", why="it must be above 0 % and below 100 %", fix=_FORM)
        return YieldLimit(most=share)
    latency, at, url = text.partition("@")
    if not at or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise UsageError(f"invalid --yield {text!r}", fix=_FORM)
    return YieldLimit(most=quantity(latency, MILLISECONDS, "--yield", "--yield 20ms@URL"), url=url)


class Pauses:
    """Waits while a reading exceeds the limit.

    Args:
        read: returns the utilisation or the latency now.
        limit: the limit.
        tell: is called with a remark when a pause begins.
        sleep, clock: those of `time`.
    """

    def __init__(
        self,
        read: Callable[[], float],
        limit: YieldLimit,
        tell: Callable[[str], None],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._limit, self._tell = read, limit, tell
        self._sleep, self._clock = sleep, clock
        self._next = clock()
        self.seconds = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for a reading. The caller then finishes its work in flight, and calls `wait`."""
        return self._clock() >= self._next

    def wait(self) -> None:
        """Return once the reading is below the limit."""
        start = self._clock()
        if not self._limit.url:
            self._sleep(SETTLE)
        told = False
        # NaN is not above the limit: a GPU that does not report its utilisation cannot be waited for.
        while self._read() > self._limit.most:
            if not told:
                self._tell(f"paused: another service exceeds {self._limit}")
                told = True
            self._sleep(AGAIN)
        self._next = self._clock() + EVERY
        self.seconds += self._clock() - start if told else 0.0


@contextlib.contextmanager
def opened(limit: YieldLimit | None, tell: Callable[[str], None]) -> Iterator[Pauses | None]:
    """Yield the pauses for a limit, or None without one.

    Raises:
        EnvironmentUnableError: no GPU reports its utilisation, or the service does not answer.
        MissingDependencyError: nvidia-ml-py is not installed.
    """
    if limit is None:
        yield None
    elif limit.url:
        if math.isinf(_latency(limit.url)):
            raise EnvironmentUnableError(f"--yield: {limit.url} does not answer", fix="Check the URL of the service")
        yield Pauses(lambda: _latency(limit.url), limit, tell)
    else:
        from trtopt.bench import watch

        with watch.opened() as module:
            if math.isnan(_utilisation(module)):
                raise EnvironmentUnableError(
                    "--yield: the GPU does not report its utilisation", fix="Use a latency instead"
                )
            yield Pauses(lambda: _utilisation(module), limit, tell)


def _utilisation(module: Any) -> float:
    """Return the utilisation of the first GPU that this process sees, 0 to 1; NaN if it does not report it."""
    from trtopt.bench import watch
    from trtopt.bench.gpu import visible

    ours = visible(0, os.environ.get("CUDA_VISIBLE_DEVICES"))
    for gpu in watch.read(module):
        if gpu.index == ours or (isinstance(ours, str) and gpu.uuid.startswith(ours)):
            return gpu.readings.get("utilisation", math.nan)
    return math.nan


def _latency(url: str) -> float:
    """Return the time of a GET request in milliseconds; infinity if the service does not answer."""
    # Imported on use: every command reads this module, and HTTP takes longer to import than the rest of it.
    import urllib.request
    from http.client import HTTPException

    start = time.perf_counter()
    try:
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            answer.read(1 << 16)
    except (OSError, ValueError, HTTPException):
        return math.inf
    return (time.perf_counter() - start) * 1e3
