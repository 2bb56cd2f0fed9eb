"""Memory and latency of one batch size, measured in a process of its own.

A process that ran out of memory, or whose arena has grown, gives wrong results for the next batch size. So each batch
size gets a fresh process, which is killed when it exceeds its limit, before the machine runs out of memory.

Touches: starts a process (`trtopt.child`); in it, the model and the GPU.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from trtopt import child
from trtopt.bench.gpu import resident
from trtopt.bench.inputs import Sizes, random
from trtopt.bench.targets import Session, open_engine, open_onnx
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.errors import ModelError, OutOfMemoryError
from trtopt.requires import require
from trtopt.types import Engine

# Runs of a batch size: at least `_MIN_RUNS` and for at least `_MEASURE_MS`, but no more after `_LIMIT_MS`.
_MIN_RUNS = 5
_MEASURE_MS = 300.0
_LIMIT_MS = 5000.0
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Target, device and batch size to try, and how much memory it may use.

    `engine` is the engine to run; None for an ONNX graph. `limit` is in bytes; 0 on `cuda`
    means the free memory of the GPU. `host` limits the host memory of the process in bytes; 0 means that it is not
    monitored.
    """

    path: Path
    engine: Engine | None
    sizes: Sizes
    device: Literal["cpu", "cuda"]
    batch: int
    limit: int
    host: int = 0
    cuda: CudaOptions = field(default_factory=CudaOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Result of trying a batch size.

    All sizes are in bytes. `memory` is the total: on the CPU the peak resident memory of the process, on the GPU the
    growth of the memory in use. `base` is the memory in use before the model was loaded, `weights` is 0 if the backend
    does not report it, `limit` is the limit that applied. `latency` is the median in ms, including copies between host
    and device. If the batch does not fit, `failed` says why, in words, and `reason` classifies it.
    """

    where: str = ""
    memory: int = 0
    base: int = 0
    weights: int = 0
    inputs_outputs: int = 0
    limit: int = 0
    latency: float = 0.0
    failed: str = ""
    reason: Literal["memory", "time", "refused"] = "memory"


def ask(question: Question, timeout: float) -> Answer:
    """Try a batch size in a fresh process, for at most `timeout` seconds.

    Raises:
        TrtoptError: the target cannot be run at all, for a reason other than its size.
    """
    end = time.monotonic() + timeout

    def guard(process: int) -> Answer | None:
        """Return why the process must be killed: too much memory or time."""
        memory = resident(process) if question.host else 0
        if memory > question.host and question.device == "cpu":
            return Answer(memory=memory, limit=question.limit, failed="exceeds the memory limit")
        if memory > question.host:
            return Answer(limit=question.limit, failed="needs more host memory for inputs and outputs than is free")
        if time.monotonic() > end:
            return Answer(limit=question.limit, failed=f"did not finish within {timeout:.0f} s", reason="time")
        return None

    try:
        return child.call(answer, question, child.Terms(guard=guard))
    except child.StoppedError as stopped:
        return cast(Answer, stopped.reason)
    except child.DiedError as died:
        if died.out_of_memory:
            return Answer(limit=question.limit, failed="exhausts the host's memory")
        why = " ".join(filter(None, [died.cause, "" if died.raised else died.last_line]))
        raise ModelError(f"{question.path} cannot be run at batch {question.batch}", why=why, fix=died.advice) from died


def answer(question: Question, say: child.Say) -> Answer:  # noqa: ARG001 - a function of `trtopt.child`
    """Try a batch size in this process."""
    try:
        return _answer(question)
    except OutOfMemoryError as error:
        return Answer(limit=question.limit, failed=error.why or error.what)


def _answer(question: Question) -> Answer:
    if question.device == "cpu":
        require("onnxruntime")
        base = resident()
        return replace(_run(question, question.limit, _peak), base=base)
    from trtopt.engine.cuda.device import open_device

    with open_device() as device:
        free = device.free_bytes()
        limit = min(question.limit, free) if question.limit else free
        answer = _run(question, limit, lambda: free - device.free_bytes())
        name = device.info.name
        return answer if name in answer.where else replace(answer, where=f"{answer.where}, {name}")


def _run(question: Question, limit: int, memory: Callable[[], int]) -> Answer:
    """Run the batch a few times. `memory` returns the bytes in use, and is called while the model is loaded."""
    session: Session
    if question.engine is not None:
        session = open_engine(question.engine)
    else:
        session = open_onnx(question.path, question.device, replace(question.cuda, memory_limit=limit))
    with contextlib.closing(session):
        ways = session.ways(random(question.sizes, question.batch))
        run = ways.with_copies or ways.plain  # callers wait for the copies, too
        latencies: list[float] = []
        while len(latencies) < _MIN_RUNS or sum(latencies) < _MEASURE_MS:
            latencies.append(run())
            if sum(latencies) > _LIMIT_MS:
                break
        used, weights = memory(), session.weights
    failed = "exceeds the memory limit" if limit and used > limit else ""
    return Answer(
        where=session.where,
        memory=used,
        weights=weights,
        inputs_outputs=ways.bytes,
        limit=limit,
        latency=statistics.median(latencies[len(latencies) // 2 :]),  # the first half counts as warm-up
        failed=failed,
    )


def _peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    # getrusage would also count the memory that the parent had at the fork, before this program was loaded.
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resident()
