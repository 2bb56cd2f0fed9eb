"""The simulation of `trtopt fleet` beside a real Triton server on the CPU: p95 of the latency at 30, 60 and 80 % load.

    python benchmarks/queues.py [--model network] [--seconds 30] [--runs 3]

Prints the ratio of the simulated to the measured p95 for each load and run, and ends with 1 unless two of three runs
are within 20 % at each load. The server has one core, with one thread per model, and the client another one. All that
the simulation is told is measured through the same server, half of it before a run and half of it after:

- the time of a batch, with the server's work for its requests: the time between the answers to successive batches of
  a server that always has a full batch to run;
- the time of a request outside of that, in the client and on the way: the latency of a model that computes nothing,
  without the time that the server's core works for it.

`ratio` is with these times alone. At 80 % load, batches that take 4 % longer make the p95 20 % longer, and other
programs do that to a run. So `in run` is with the same times, longer or shorter as the server reports of the batches of
the run itself: by `slower`, on average.

The requests of the simulation arrive when the real ones do: the p95 of another half minute may differ by 20 % itself.
The load average is that of the end of a run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from queue_models import BATCH, BATCHES, EMPTY, Case, cases
from tritonclient import grpc

from trtopt.bench.intervals import Floats
from trtopt.fleet.demand import Demand, Memory, Time
from trtopt.fleet.simulate import Setting, Station, Stream, simulate
from trtopt.serve import load, repository, verify
from trtopt.serve.client import Client, address
from trtopt.serve.server import Server

LOADS = (0.3, 0.6, 0.8)
WAITING = 3
"""Batches of requests that are sent at the same time, so that a full one always waits."""
EMPTY_REQUESTS = 500
PROBE = 0.15
"""Time to measure the batches of one size before a run, and after it, relative to that of the run."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times in ms: of batches by their size; the mean of what the server reports of them; of requests outside of it."""

    batches: dict[int, Floats]
    reported: dict[int, float]
    outside: Floats


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run.

    Attributes:
        rate: requests per second.
        real: the measured p95 in ms.
        expected: the simulated p95 in ms.
        slower: the time of the batches in the run, relative to those before and after it.
        in_run: the simulated p95 in ms with batches that are slower by that.
    """

    rate: float
    real: float
    expected: float
    slower: float
    in_run: float


@contextmanager
def running(found: Sequence[Case]) -> Iterator[Server]:
    """Start a server on the first core, and move this process to the last one."""
    first, *_, last = sorted(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = "1"  # else onnxruntime has a thread on each core
    pin(first)
    folders = {folder.name: folder for case in found for folder in (case.folder, *case.fixed.values())}
    made = [*folders.values(), EMPTY.folder]
    with (
        tempfile.TemporaryDirectory() as folder,
        repository.staged(Path(folder) / "models", made) as stage,
        verify.served(made, stage) as server,
    ):
        pin(last)
        yield server


def pin(core: int) -> None:
    """Move all threads of this process to a core. Threads and processes that they start inherit it."""
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def reported(server: Server, name: str) -> dict[int, tuple[int, float]]:
    """Return the number of runs of a model by batch size, and the ms that they took together, as the server says."""
    with grpc.InferenceServerClient(address(server.url)) as client:
        (found,) = client.get_inference_statistics(name).model_stats
    return {
        each.batch_size: (
            each.compute_infer.count,
            (each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns) / 1e6,
        )
        for each in found.batch_stats
    }


def since(server: Server, name: str, before: dict[int, tuple[int, float]]) -> dict[int, tuple[int, float]]:
    """Return the runs since an earlier report, by batch size, and their mean ms."""
    found = {}
    for batch, (count, total) in reported(server, name).items():
        runs, spent = count - before.get(batch, (0, 0.0))[0], total - before.get(batch, (0, 0.0))[1]
        found |= {batch: (runs, spent / runs)} if runs else {}
    return found


def busy(client: Client, case: Case, batch: int, seconds: float) -> Floats:
    """Return the ms from one batch to the next of a server that always has a full batch to run."""
    name, senders = case.fixed[batch].name, WAITING * batch
    ends: list[float] = []
    stop = time.perf_counter() + seconds

    def send(_: int) -> None:
        while time.perf_counter() < stop:
            client.infer(name, case.request)
            ends.append(time.perf_counter())

    with ThreadPoolExecutor(senders) as pool:
        list(pool.map(send, range(senders)))
    # The first requests and the last ones are not of full batches.
    return np.diff(np.sort(ends)[senders : -senders or None : batch]) * 1000


def outside(client: Client, server: Server) -> Floats:
    """Return the ms of requests to the empty model that the server does not work for them."""
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]

    def worked() -> float:
        return sum(each.cpu_times().user + each.cpu_times().system for each in processes)

    before, latencies = worked(), []
    for _ in range(EMPTY_REQUESTS):
        start = time.perf_counter()
        client.infer(EMPTY.name, EMPTY.request)
        latencies.append((time.perf_counter() - start) * 1000)
    return np.maximum(np.array(latencies) - (worked() - before) / EMPTY_REQUESTS * 1000, 0)


def measure(client: Client, server: Server, case: Case, seconds: float) -> Measured:
    batches, means = {}, {}
    for batch in BATCHES:
        name = case.fixed[batch].name
        before = reported(server, name)
        batches[batch] = busy(client, case, batch, seconds)
        means[batch] = since(server, name, before)[batch][1]
    return Measured(batches=batches, reported=means, outside=outside(client, server))


def demand(name: str, parts: Sequence[Measured]) -> Demand:
    """Return a model with the times that were measured, as `trtopt bench` would state them."""
    times = []
    for batch in BATCHES:
        found = np.concatenate([part.batches[batch] for part in parts])
        p50, p90, p95, p99 = map(float, np.percentile(found, (50, 90, 95, 99)))
        times.append(Time(batch=batch, mean=float(found.mean()), p50=p50, p90=p90, p95=p95, p99=p99))
    none = Memory(weights=0, context=0, per_sample=0)
    return Demand(name=name, rate=1.0, memory=none, times=tuple(times), largest=BATCH)


def slowdown(parts: Sequence[Measured], ran: dict[int, tuple[int, float]]) -> float:
    """Return the time of the batches of a run, relative to those that were measured, both as the server reports it."""
    known = [float(np.mean([part.reported[batch] for part in parts])) for batch in BATCHES]
    spent = sum(count * mean for count, mean in ran.values())
    return spent / sum(count * float(np.interp(batch, BATCHES, known)) for batch, (count, _) in ran.items())


def compare(client: Client, server: Server, case: Case, share: float, seconds: float) -> Row:
    """Send requests at a share of what the model can serve, and simulate the same requests."""
    before = measure(client, server, case, seconds * PROBE)
    rate = share * case.instances * BATCH / float(before.batches[BATCH].mean()) * 1000
    traffic = load.Traffic(model=case.name, feeds=[case.request], seconds=seconds, timeout=60, poisson=True)
    earlier = reported(server, case.name)
    real = load.at_rate(client, traffic, rate)
    ran = since(server, case.name, earlier)
    parts = (before, measure(client, server, case, seconds * PROBE))
    slower, times = slowdown(parts, ran), demand(case.name, parts)
    extra = np.concatenate([part.outside for part in parts])

    def simulated(factor: float) -> float:
        station = Station(
            streams=(Stream(rate=rate, moments=tuple((load.due(real.sent, rate, traffic) * 1000).tolist())),),
            duration=lambda batch, level: factor * times.quantile(batch, level),
            batch=BATCH,
            instances=(0,) * case.instances,
            delay=case.delay,
            share=1 / case.instances if case.sleeps else 1,
        )
        (found,) = simulate([station], Setting(speeds=(1.0,), seconds=seconds))
        return float(np.percentile(found.latency + np.random.default_rng(0).choice(extra, len(found.latency)), 95))

    return Row(rate=rate, real=real.latency["p95"], expected=simulated(1), slower=slower, in_run=simulated(slower))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="one of the models; default: all")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        found = [case for case in cases(Path(folder)) if case.name in (asked.model or case.name)]
        print(f"{'model':<8} load  requests/s  real p95  simulated  ratio  slower  in run  load average")
        with running(found) as server, Client(server.url) as client:
            for case in found:
                for share in LOADS:
                    ratios = []
                    for _ in range(asked.runs):
                        row = compare(client, server, case, share, asked.seconds)
                        ratios.append(row.in_run / row.real)
                        start = f"{case.name:<8} {share:>4.0%} {row.rate:>11.1f} {row.real:>9.1f} {row.expected:>10.1f}"
                        end = f"{row.expected / row.real:>6.2f} {row.slower:>7.2f} {ratios[-1]:>7.2f}"
                        print(f"{start} {end} {os.getloadavg()[0]:>13.1f}", flush=True)
                    holds &= 3 * sum(abs(ratio - 1) <= 0.2 for ratio in ratios) >= 2 * len(ratios)
    print(f"{'' if holds else 'NOT '}within 20 % in two of three runs at each load")
    return not holds


if __name__ == "__main__":
    sys.exit(main())
