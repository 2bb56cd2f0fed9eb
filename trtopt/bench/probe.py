"""Memory and latency of one batch size, measured in a process of its own.

A process that ran out of memory, or whose arena has grown, gives wrong results for the next batch size. So each batch
size gets a fresh process, which is killed when it exceeds its limit, before the machine runs out of memory.

    python -c "from trtopt.bench.probe import main; main()"     reads a Question from stdin, prints an Answer (JSON)

Touches: starts a process; in it, the model and the GPU.
"""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from trtopt import errors
from trtopt.bench.gpu import resident
from trtopt.bench.inputs import Sizes, random
from trtopt.bench.targets import Session, open_engine, open_onnx
from trtopt.codec import decode, encode
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.errors import ModelError, OutOfMemoryError, TrtoptError
from trtopt.requires import require
from trtopt.types import Engine

# `python -c` puts the current folder first on the path, where a file onnx.py would hide the package. It is removed, and
# the folder of trtopt itself is appended, for runs from a source checkout.
_PROGRAM = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [{root!r}]; from trtopt.bench.probe import main; main()"
)
_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_POLL_SECONDS = 0.005
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
    # Files instead of pipes: nothing reads a pipe while the process is monitored, and a full one would block it.
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(json.dumps(encode(question)).encode())
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(root=_ROOT)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # the terminal's Ctrl-C reaches only the parent, which then kills the child
        )
        try:
            stopped = _monitor(process, question, timeout)
        finally:
            process.kill()
            process.wait()
        stdout.seek(0)
        stderr.seek(0)
        reply, log = stdout.read(), stderr.read().decode(errors="replace").strip()
    if stopped is not None:
        return stopped
    if process.returncode or not reply:
        return _crashed(question, process.returncode, log)
    answer = json.loads(reply.splitlines()[-1])  # libraries may have printed lines before it
    if "error" in answer:
        error_class = getattr(errors, answer["error"], ModelError)  # CudaError is not defined in `errors`
        raise error_class(answer["what"], why=answer["why"], fix=answer["fix"])
    return decode(Answer, answer)


def _monitor(process: subprocess.Popen[bytes], question: Question, timeout: float) -> Answer | None:
    """Wait for the process to end and return None, or return why it must be killed: too much memory or time."""
    end = time.monotonic() + timeout
    while process.poll() is None:
        memory = resident(process.pid) if question.host else 0
        if memory > question.host and question.device == "cpu":
            return Answer(memory=memory, limit=question.limit, failed="exceeds the memory limit")
        if memory > question.host:
            return Answer(limit=question.limit, failed="needs more host memory for inputs and outputs than is free")
        if time.monotonic() > end:
            return Answer(limit=question.limit, failed=f"did not finish within {timeout:.0f} s", reason="time")
        time.sleep(_POLL_SECONDS)
    return None


def _crashed(question: Question, code: int, log: str) -> Answer:
    """Return the answer of a process that was killed for lack of memory; raise a ModelError for any other crash."""
    last = log.splitlines()[-1] if log else ""
    # Linux ends processes with SIGKILL when memory is exhausted.
    if code == -signal.SIGKILL or "MemoryError" in log or "bad_alloc" in log:
        return Answer(limit=question.limit, failed="exhausts the host's memory")
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise ModelError(f"{question.path} cannot be run at batch {question.batch}", why=f"{reason} {last}".strip())


def main() -> None:
    """Read a question from stdin and print the answer, or the error, as one line of JSON."""
    question = decode(Question, json.load(sys.stdin))
    try:
        answer = encode(_answer(question))
    except OutOfMemoryError as error:
        answer = encode(Answer(limit=question.limit, failed=error.why or error.what))
    except TrtoptError as error:
        answer = {"error": type(error).__name__, "what": error.what, "why": error.why, "fix": error.fix}
    print(json.dumps(answer, allow_nan=False))


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
