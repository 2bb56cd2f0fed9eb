"""A simulation of a server: requests arrive, wait, are joined as batches, and run on GPUs that instances share.

It follows Triton's dynamic batcher (`BatcherThread` in src/dynamic_batch_scheduler.cc of its core). Waiting requests
join a batch that is still open when it becomes full, or when the oldest of them has waited for the delay; an idle
instance takes the first batch. With a delay, the batcher looks only when a batch ends, a delay is over, the open batch
can be filled, or none is open. At most two batches per instance are formed ahead. With priority levels none is, so that
an idle instance takes the most urgent requests. Running instances slow each other down once they occupy more than their
GPU; with the rate limiter, they wait for each other instead, and the one with the fewest runs times its priority goes
first.

Touches: nothing.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_WARM_UP = 0.05
"""Part of the requests, at the start, that finds the server emptier than usual and is not counted."""
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Requests that arrive at random times: how many per second, and their priority level (1 goes first).

    `moments` are the times in milliseconds, ascending, where they are known.
    """

    rate: float
    level: int = 1
    moments: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """A served model.

    Attributes:
        streams: its requests.
        duration: the time of a batch in milliseconds, for its size and a random number in [0, 1).
        batch: the largest batch.
        instances: the GPU of each instance.
        delay: how long a request waits for others, in milliseconds.
        preferred: batch sizes that run at once when they are reached; empty: the largest batch.
        share: the part of a GPU that a running instance occupies.
        priority: for the rate limiter; one of 2 gets half the turns of one of 1.
    """

    streams: tuple[Stream, ...]
    duration: Callable[[int, float], float]
    batch: int
    instances: tuple[int, ...]
    delay: float = 0.0
    preferred: tuple[int, ...] = ()
    share: float = 1.0
    priority: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the models run: the speed of each GPU, whether with the rate limiter, for how many seconds, and a seed."""

    speeds: tuple[float, ...]
    limited: bool = False
    seconds: float = 60.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A model's requests, in the order of arrival.

    Attributes:
        latency: float64 [n], from arrival to answer in milliseconds.
        level: int64 [n], the priority level of each.
        batch: the mean batch.
    """

    latency: Floats
    level: NDArray[np.int64]
    batch: float


@dataclass(slots=True, kw_only=True)
class _Job:
    station: _State
    gpu: _Gpu
    requests: list[int]
    left: float


@dataclass(slots=True, kw_only=True)
class _Gpu:
    speed: float
    running: list[_Job] = field(default_factory=list)
    occupied: float = 0.0
    updated: float = 0.0

    def advance(self, now: float) -> None:
        done = (now - self.updated) * self.speed / max(self.occupied, 1.0)
        for job in self.running:
            job.left -= done
        self.updated = now

    def next_end(self) -> float:
        if not self.running:
            return math.inf
        return self.updated + max(min(job.left for job in self.running), 0.0) * max(self.occupied, 1.0) / self.speed


@dataclass(slots=True, kw_only=True)
class _State:
    """A station while time passes: requests that wait by level, formed batches, and idle instances and runs by GPU.

    `most` is the size of a full batch, and `slots` the number of batches that may be formed before they run.
    """

    station: Station
    number: int
    most: int
    slots: int
    queues: dict[int, deque[int]]
    idle: dict[int, int]
    runs: dict[int, int]
    formed: deque[list[int]] = field(default_factory=deque)
    batches: int = 0
    timer: float = -1.0

    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))

    def open(self) -> list[int]:
        """Return the batch that requests may join; an empty one if there is none."""
        return self.formed[-1] if self.formed and len(self.formed[-1]) < self.most else []

    def wakes(self) -> bool:
        """Return whether the batcher looks at a request that has arrived."""
        size = len(self.open())
        return not size or not self.station.delay or self.slots == 1 or size + self.waiting() >= self.most

    def oldest(self) -> int:
        return min(queue[0] for queue in self.queues.values() if queue)

    def joining(self, size: int, *, waited: bool) -> int:
        """Return how many requests join a batch that has some; 0 if they wait for more."""
        total = min(size + self.waiting(), self.most)
        reached = [each for each in self.station.preferred or (self.most,) if size < each <= total]
        return total - size if waited else max(reached, default=size) - size

    def take(self, size: int) -> list[int]:
        taken: list[int] = []
        for queue in self.queues.values():
            while queue and len(taken) < size:
                taken.append(queue.popleft())
        return taken


def simulate(stations: Sequence[Station], setting: Setting) -> tuple[Outcome, ...]:
    """Run a server for some time, until all requests are answered, and return what became of each model's requests."""
    times, owners, levels = _arrivals(stations, setting)
    server = _Server(stations, setting, times)
    server.run(owners, levels)
    outcomes = []
    for number, state in enumerate(server.states):
        own = np.flatnonzero(np.asarray(owners) == number)
        counted = own[int(len(own) * _WARM_UP) :]
        mean = len(own) / state.batches if state.batches else math.nan
        ends, starts, level = np.asarray(server.ends), np.asarray(times), np.asarray(levels, np.int64)
        outcomes.append(Outcome(latency=ends[counted] - starts[counted], level=level[counted], batch=mean))
    return tuple(outcomes)


def _arrivals(stations: Sequence[Station], setting: Setting) -> tuple[list[float], list[int], list[int]]:
    """Return the time in milliseconds, the station and the level of each request, by time."""
    rng = np.random.default_rng(setting.seed)
    parts = []
    for number, station in enumerate(stations):
        for stream in station.streams:
            moments = np.asarray(stream.moments, np.float64)
            if not stream.moments:
                count = rng.poisson(stream.rate * setting.seconds)
                moments = np.sort(rng.uniform(0, setting.seconds * 1000, count))
            parts.append((moments, np.full(len(moments), number), np.full(len(moments), stream.level)))
    times, owners, levels = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(times, kind="stable")
    return times[order].tolist(), owners[order].tolist(), levels[order].tolist()


class _Server:
    """The events: a request arrives, a batch ends, or the oldest request of a model has waited for its delay."""

    def __init__(self, stations: Sequence[Station], setting: Setting, times: list[float]) -> None:
        self.times, self.limited = times, setting.limited
        self.ends = [0.0] * len(times)
        self.gpus = [_Gpu(speed=speed) for speed in setting.speeds]
        self.random = random.Random(setting.seed)
        self.timers: list[tuple[float, int]] = []
        self.states = [_state(number, station) for number, station in enumerate(stations)]
        self.on = [[state for state in self.states if gpu in state.idle] for gpu in range(len(self.gpus))]

    def run(self, owners: list[int], levels: list[int]) -> None:
        """Let all requests arrive, and answer them."""
        arrived = 0
        while True:
            arrival = self.times[arrived] if arrived < len(self.times) else math.inf
            timer = self.timers[0][0] if self.timers else math.inf
            ends = [gpu.next_end() for gpu in self.gpus]
            end = min(ends)
            now = min(arrival, timer, end)
            if now == math.inf:
                return
            if now == end:
                self.finish(ends.index(end), now)
            elif now == arrival:
                state = self.states[owners[arrived]]
                state.queues[levels[arrived]].append(arrived)
                arrived += 1
                self.start([state], range(len(self.gpus)), now, awake=state.wakes())
            else:
                self.start([self.states[heapq.heappop(self.timers)[1]]], range(len(self.gpus)), now)

    def finish(self, number: int, now: float) -> None:
        """End the batches that are done on a GPU, and start others there."""
        gpu = self.gpus[number]
        gpu.advance(now)
        first = min(job.left for job in gpu.running)
        done = [job for job in gpu.running if job.left <= first + _EPSILON]
        for job in done:
            gpu.running.remove(job)
            job.station.idle[number] += 1
            for request in job.requests:
                self.ends[request] = now
        gpu.occupied = sum(job.station.station.share for job in gpu.running)
        # An idle instance is faster than the batcher.
        self.start(self.on[number], [number], now, awake=False)
        self.start([job.station for job in done], range(len(self.gpus)), now)

    def start(self, states: Sequence[_State], gpus: Sequence[int], now: float, *, awake: bool = True) -> None:
        """Start all batches that may run now, those with the fewest turns first.

        `awake`: whether the batcher looks at the waiting requests of models with a delay.
        """
        while True:
            ready = []
            for state in states:
                free = [gpu for gpu in gpus if state.idle.get(gpu) and self.has_room(self.gpus[gpu], state)]
                if free if state.slots == 1 else awake or not state.station.delay:
                    self.form(state, now)
                if state.formed:
                    ready += [(state.runs[gpu] * state.station.priority, state.number, gpu) for gpu in free]
            if not ready:
                return
            _, number, gpu = min(ready)
            self.launch(self.states[number], gpu, now)

    def form(self, state: _State, now: float) -> None:
        """Let waiting requests of a model join batches, or set a timer if they wait for others."""
        while state.waiting() and len(state.formed) < state.slots:
            last = state.open()
            due = self.times[state.oldest()] + state.station.delay
            count = state.joining(len(last), waited=now >= due - _EPSILON)
            if not count:
                if state.timer != due:
                    state.timer = due
                    heapq.heappush(self.timers, (due, state.number))
                return
            if not last:
                state.formed.append(last)
            last += state.take(count)

    def has_room(self, gpu: _Gpu, state: _State) -> bool:
        return not self.limited or gpu.occupied + state.station.share <= 1 + _EPSILON

    def launch(self, state: _State, number: int, now: float) -> None:
        gpu = self.gpus[number]
        gpu.advance(now)
        batch = state.formed.popleft()
        left = state.station.duration(len(batch), self.random.random())
        gpu.running.append(_Job(station=state, gpu=gpu, requests=batch, left=left))
        gpu.occupied += state.station.share
        state.idle[number] -= 1
        state.runs[number] += 1
        state.batches += 1


def _state(number: int, station: Station) -> _State:
    return _State(
        station=station,
        number=number,
        most=max(station.preferred, default=station.batch),
        slots=2 * len(station.instances) if len({stream.level for stream in station.streams}) == 1 else 1,
        queues={stream.level: deque() for stream in sorted(station.streams, key=lambda stream: stream.level)},
        idle={gpu: station.instances.count(gpu) for gpu in station.instances},
        runs=dict.fromkeys(station.instances, 0),
    )
