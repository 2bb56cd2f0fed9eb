"""Search for the largest batch that fits memory and latency: doubling, then bisection, each batch size measured.

The search assumes that memory and latency grow with the batch size. This is checked with the measured batch sizes and
one more, above the smallest that did not fit.

Touches: starts processes; reads `/proc`, and the model's header.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from trtopt.bench.probe import Answer, Question, ask
from trtopt.errors import EnvironmentUnableError, TrtoptError
from trtopt.events import Emit, Progress
from trtopt.types import BatchLimit, BatchProbe

MOST = 65536
"""Largest batch size that is tried."""

PROBE_SECONDS = 60.0
_RESERVE = 0.1
"""Share of the free host memory that is left to other processes."""
_RESOLUTION = 20
"""The search ends when the interval is smaller than 1/20 (5 %) of the batch size."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a batch: memory in bytes (0 means the free memory), latency in ms (infinity means no limit)."""

    memory: int = 0
    latency: float = math.inf


def largest(
    question: Question, limits: Limits, takes: range | None, emit: Emit
) -> tuple[BatchLimit, str, tuple[str, ...]]:
    """Find the largest batch that fits.

    Args:
        question: the target and its device. Batch size and limits are filled in here.
        limits: memory and latency that a batch may take.
        takes: batch sizes that an engine supports; None for any up to `MOST`.
        emit: receives the progress.

    Returns:
        The largest batch, the device that it ran on, and remarks on reasons to doubt the search.

    Raises:
        EnvironmentUnableError: the memory of a process cannot be measured on this system.
        TrtoptError: the model cannot be run.
    """
    limit, host = limits.memory, 0
    if question.device == "cpu":
        limit = host = limits.memory or available()
    else:
        # On a GPU, too, inputs and outputs need host memory. Without /proc that is not monitored.
        with contextlib.suppress(EnvironmentUnableError):
            host = available()
    answers: dict[int, Answer] = {}

    def try_batch(batch: int) -> BatchProbe:
        emit(Progress("bench", len(answers), 0, f"batch {batch}"))
        answers[batch] = _answer(replace(question, batch=batch, limit=limit, host=host), is_first=not answers)
        return _judged(batch, answers[batch], limits.latency)

    probes = search(try_batch, takes or range(1, MOST + 1))
    fitting = [probe for probe in probes if not probe.failed]
    smallest_failed = min((probe.batch for probe in probes if probe.failed), default=math.inf)
    # A batch that fits although a smaller one does not is not reliable. `_doubts` reports it.
    below = [probe for probe in fitting if probe.batch < smallest_failed]
    best = max(below, key=lambda probe: probe.batch, default=None)
    # On a GPU without a limit given, only the processes know the limit: the memory that was free at their start.
    memory_limit = max((answer.limit for answer in answers.values()), default=limit)
    bytes_fixed, bytes_per_sample = _fit_line(fitting)
    answer = answers[best.batch] if best else Answer()
    limited_by, why = _reason(probes, best, answers, is_profile=takes is not None)
    batch_limit = BatchLimit(
        target=str(question.path),
        device=question.device,
        batch=best.batch if best else 0,
        limited_by=limited_by,
        why=why,
        memory_limit=memory_limit,
        latency_limit=limits.latency if math.isfinite(limits.latency) else math.nan,
        total=answer.memory,
        base=answer.base,
        weights=answer.weights if question.engine else weights(question.path),
        inputs_outputs=answer.inputs_outputs,
        bytes_fixed=bytes_fixed,
        bytes_per_sample=bytes_per_sample,
        probes=tuple(probes),
    )
    where = next((answer.where for answer in answers.values() if answer.where), "")
    return batch_limit, where, _doubts(probes, timed=math.isfinite(limits.latency))


def _answer(question: Question, *, is_first: bool) -> Answer:
    """Ask a question. An error at the first batch is raised; a later one counts as a batch that does not fit."""
    try:
        return ask(question, PROBE_SECONDS)
    except TrtoptError as error:
        if is_first:
            raise
        return Answer(limit=question.limit, failed=f"cannot be run: {error.why or error.what}", reason="refused")


def search(probe: Callable[[int], BatchProbe], takes: range) -> list[BatchProbe]:
    """Try batch sizes until the largest that fits is known to 5 %, then one more above the smallest that failed.

    If larger batches never fit where smaller ones fail, the largest batch that fits is at most 5 % above the largest
    one found, and equal to it below 40.

    Args:
        probe: tries one batch size.
        takes: the batch sizes to choose from.

    Returns:
        All batch sizes that were tried, in ascending order.
    """
    probes: list[BatchProbe] = []

    def fits(batch: int) -> bool:
        probes.append(probe(batch))
        return not probes[-1].failed

    most = takes[-1]
    # `good` is the largest batch known to fit (0: none), `bad` the smallest that does not, or the next to try.
    good, bad = 0, takes[0]
    while fits(bad):
        good = bad
        if good == most:
            return probes
        bad = min(2 * good, most)
    while good and bad - good > max(1, good // _RESOLUTION):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    # If this one fits, memory does not grow with the batch size, and the result is doubtful.
    beyond = bad + max(1, bad // 4)
    if beyond <= most and all(probe.batch != beyond for probe in probes):
        fits(beyond)
    return sorted(probes, key=lambda probe: probe.batch)


def _judged(batch: int, answer: Answer, latency: float) -> BatchProbe:
    """Return the outcome of a batch size, for a latency limit in ms."""
    failed = answer.failed
    if not failed and answer.latency > latency:
        failed = f"takes {answer.latency:.4g} ms"
    return BatchProbe(batch=batch, memory=answer.memory, latency=answer.latency or math.nan, failed=failed)


_By = Literal["memory", "latency", "profile", "time", "search", "refused"]


def _reason(
    probes: Sequence[BatchProbe], best: BatchProbe | None, answers: dict[int, Answer], *, is_profile: bool
) -> tuple[_By, str]:
    """Return the kind of limit that the next larger batch exceeds, and a sentence about it."""
    above = [probe for probe in probes if probe.failed and probe.batch > (best.batch if best else 0)]
    if not above and is_profile:
        return "profile", "the engine supports no larger batch"
    if not above:
        return "search", "no larger batch was tried"
    next_larger = above[0]
    answer = answers[next_larger.batch]
    sentence = f"batch {next_larger.batch}: {next_larger.failed}"
    return (answer.reason if answer.failed else "latency"), sentence


def _fit_line(fitting: Sequence[BatchProbe]) -> tuple[int, float]:
    """Return the memory in bytes that does not depend on the batch, and the bytes per sample, by least squares."""
    known = [probe for probe in fitting if probe.memory]
    if len(known) < 2:
        return (known[0].memory if known else 0), 0.0
    slope, intercept = np.polyfit([probe.batch for probe in known], [probe.memory for probe in known], 1)
    return round(max(intercept, 0.0)), max(float(slope), 0.0)


def _doubts(probes: Sequence[BatchProbe], *, timed: bool = False) -> tuple[str, ...]:
    """Return reasons to doubt the search, which assumes that memory and latency grow with the batch size.

    Latencies are compared only if they are limited (`timed`): kernels may be slow for odd batch sizes.
    """
    failed = [probe.batch for probe in probes if probe.failed]
    doubts = []
    for probe in probes:
        if not probe.failed and failed and probe.batch > min(failed):
            doubts.append(
                f"batch {probe.batch} fits but {min(failed)} did not: the largest batch may be a different one"
            )
    costs = {"memory": {probe.batch: float(probe.memory) for probe in probes if not probe.failed}}
    if timed:  # batches above the latency limit have a latency, too
        costs["time"] = {probe.batch: probe.latency for probe in probes if math.isfinite(probe.latency)}
    for what, cost_by_batch in costs.items():
        batches, costs_in_order = list(cost_by_batch), list(cost_by_batch.values())
        falls = [i for i in range(1, len(batches)) if costs_in_order[i] < 0.9 * max(costs_in_order[:i])]
        if falls:
            cheaper = batches[falls[0]]
            doubts.append(
                f"batch {cheaper} takes less {what} than a smaller one: the largest batch may be a different one"
            )
    return tuple(doubts)


def weights(path: Path) -> int:
    """Return the size of an ONNX file's weights in bytes, computed from their shapes and types."""
    import onnx_ir as ir

    from trtopt.graph.file import load_proto

    graph = load_proto(path).graph
    return sum(
        math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize) for tensor in graph.initializer
    )


def available() -> int:
    """Return 90 % of the memory in bytes that this process may still allocate: the machine's or its control group's.

    Raises:
        EnvironmentUnableError: the system has no `/proc/meminfo`.
    """
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError) as error:
        raise EnvironmentUnableError(
            "--max-batch does not work on the CPU of this system",
            why="it has no /proc/meminfo, so the memory of a process cannot be monitored",
            fix="Run it on Linux, or with --device cuda",
        ) from error
    return int((1 - _RESERVE) * min(free, _in_group("memory.max", "memory.current")))


def _in_group(limit: str, usage: str) -> float:
    """Return what is left of a limit of the control group (version 2) in bytes; infinity without a limit."""
    try:
        return int((_CGROUP / limit).read_text()) - int((_CGROUP / usage).read_text())
    except (OSError, ValueError):  # the control group is missing, or the file contains "max" for no limit
        return math.inf
