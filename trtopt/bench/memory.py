"""The largest batch that fits the memory and the latency, found by trying: doubling first, then halving what is open.

That takes memory and latency to grow with the batch. Whether they do is looked at, with what was tried and one batch
beyond the first that did not fit.

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
"""Largest batch that is tried."""

PROBE_SECONDS = 60.0
_RESERVE = 0.1
_RESOLUTION = 20
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much memory in bytes (0: what is free) and how many ms (infinite: any) a batch may take."""

    memory: int = 0
    latency: float = math.inf


def largest(
    question: Question, limits: Limits, takes: range | None, emit: Emit
) -> tuple[BatchLimit, str, tuple[str, ...]]:
    """Find the largest batch that fits, of those that an engine takes (None: any, to `MOST`).

    Returns it, where it ran, and remarks on whether the search may be trusted.

    Raises:
        EnvironmentUnableError: this system does not say what a process takes.
        TrtoptError: the model cannot be run.
    """
    limit, host = limits.memory, 0
    if question.device == "cpu":
        limit = host = limits.memory or available()
    else:
        with contextlib.suppress(EnvironmentUnableError):
            host = available()
    answers: dict[int, Answer] = {}

    def probe(batch: int) -> BatchProbe:
        emit(Progress("bench", len(answers), 0, f"batch {batch}"))
        answers[batch] = _answer(replace(question, batch=batch, limit=limit, host=host), is_first=not answers)
        return _judged(batch, answers[batch], limits.latency)

    tried = search(probe, takes or range(1, MOST + 1))
    fitting = [each for each in tried if not each.failed]
    failed = min((each.batch for each in tried if each.failed), default=math.inf)
    best = max((each for each in fitting if each.batch < failed), key=lambda each: each.batch, default=None)
    held = max((answer.limit for answer in answers.values()), default=limit)
    fixed, each_sample = _line(fitting)
    answer = answers[best.batch] if best else Answer()
    limited_by, why = _reason(tried, best, answers, is_profile=takes is not None)
    found = BatchLimit(
        target=str(question.path),
        device=question.device,
        batch=best.batch if best else 0,
        limited_by=limited_by,
        why=why,
        memory_limit=held,
        latency_limit=limits.latency if math.isfinite(limits.latency) else math.nan,
        total=answer.memory,
        base=answer.base,
        weights=answer.weights if question.builder else weights(question.path),
        inputs_outputs=answer.inputs_outputs,
        bytes_fixed=fixed,
        bytes_per_sample=each_sample,
        probes=tuple(tried),
    )
    return (
        found,
        next((each.where for each in answers.values() if each.where), ""),
        _doubts(tried, timed=math.isfinite(limits.latency)),
    )


def _answer(question: Question, *, is_first: bool) -> Answer:
    """Ask; what fails at the first batch is an error, what fails after that ends the search there."""
    try:
        return ask(question, PROBE_SECONDS)
    except TrtoptError as error:
        if is_first:
            raise
        return Answer(limit=question.limit, failed=f"it cannot be run: {error.why or error.what}", reason="refused")


def search(probe: Callable[[int], BatchProbe], takes: range) -> list[BatchProbe]:
    """Try batches until the largest that fits is known to 5 %, and one beyond; return all of them, the smallest first.

    If fitting is a matter of the batch alone, the largest that fits is at most 5 % above the largest here that does; of
    fewer than 40 it is that one itself.
    """
    tried: list[BatchProbe] = []

    def fits(batch: int) -> bool:
        tried.append(probe(batch))
        return not tried[-1].failed

    most = takes[-1]
    good, bad = 0, takes[0]
    while fits(bad):
        good = bad
        if good == most:
            return tried
        bad = min(2 * good, most)
    while good and bad - good > max(1, good // _RESOLUTION):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    beyond = bad + max(1, bad // 4)
    if beyond <= most and all(each.batch != beyond for each in tried):
        fits(beyond)
    return sorted(tried, key=lambda each: each.batch)


def _judged(batch: int, answer: Answer, latency: float) -> BatchProbe:
    failed = answer.failed
    if not failed and answer.latency > latency:
        failed = f"it takes {answer.latency:.4g} ms"
    return BatchProbe(batch=batch, memory=answer.memory, latency=answer.latency or math.nan, failed=failed)


_By = Literal["memory", "latency", "profile", "time", "search", "refused"]


def _reason(
    tried: Sequence[BatchProbe], best: BatchProbe | None, answers: dict[int, Answer], *, is_profile: bool
) -> tuple[_By, str]:
    """What the next larger batch exceeds, and the same as a sentence."""
    above = [each for each in tried if each.failed and each.batch > (best.batch if best else 0)]
    if not above:
        return ("profile", "the engine takes no larger one") if is_profile else ("search", "no larger one was tried")
    first, answer = above[0], answers[above[0].batch]
    sentence = f"batch {first.batch}: {first.failed}"
    return (answer.reason if answer.failed else "latency"), sentence


def _line(fitting: Sequence[BatchProbe]) -> tuple[int, float]:
    """Bytes whatever the batch is, and bytes a sample: the straight line through what was measured (least squares)."""
    known = [each for each in fitting if each.memory]
    if len(known) < 2:
        return (known[0].memory if known else 0), 0.0
    slope, start = np.polyfit([each.batch for each in known], [each.memory for each in known], 1)
    return round(max(start, 0.0)), max(float(slope), 0.0)


def _doubts(tried: Sequence[BatchProbe], *, timed: bool = False) -> tuple[str, ...]:
    """What speaks against the search: a batch fits above one that does not, or takes much less than a smaller one (in
    time only where it was limited: kernels of odd sizes are slow for reasons of their own).
    """
    failed = [each.batch for each in tried if each.failed]
    found = [
        f"batch {each.batch} fits although {min(failed)} did not: the largest batch may be another"
        for each in tried
        if not each.failed and failed and each.batch > min(failed)
    ]
    costs = {"memory": {each.batch: float(each.memory) for each in tried if not each.failed}}
    if timed:  # of those that took too long, too
        costs["time"] = {each.batch: each.latency for each in tried if math.isfinite(each.latency)}
    for what, cost in costs.items():
        batches, values = list(cost), list(cost.values())
        falls = [i for i in range(1, len(values)) if values[i] < 0.9 * max(values[:i])]
        if falls:
            found.append(f"batch {batches[falls[0]]} takes less {what} than a smaller one: the largest may be another")
    return tuple(found)


def weights(path: Path) -> int:
    """Bytes of a model's weights, by their shapes and types."""
    import onnx_ir as ir

    from trtopt.export.onnx import load_proto

    graph = load_proto(path).graph
    return sum(
        math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize) for tensor in graph.initializer
    )


def available() -> int:
    """Nine tenths of the memory in bytes that this process may still take, of the machine's or of its control group's.

    Raises:
        EnvironmentUnableError: the system does not say.
    """
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError) as error:
        raise EnvironmentUnableError(
            "the largest batch cannot be searched on this system's CPU",
            why="it has no /proc/meminfo, and what a process takes could not be watched",
            fix="Search on Linux, or with --device cuda",
        ) from error
    return int((1 - _RESERVE) * min(free, _in_group("memory.max", "memory.current")))


def _in_group(limit: str, usage: str) -> float:
    """What is left of a control group's limit (version 2); infinite where there is none."""
    try:
        return int((_CGROUP / limit).read_text()) - int((_CGROUP / usage).read_text())
    except (OSError, ValueError):  # there is no group, or it has no limit ("max")
        return math.inf
