"""One batch size, tried in a process of its own: what it takes, and how long it runs.

A process that ran out of memory, or whose arena has grown, says nothing about the next batch size. So each one gets a
fresh one, which is ended when it takes more than it may; nothing of the machine's is at stake.

    python -c "from trtopt.bench.probe import main; main()"     a Question on stdin, an Answer on stdout, as JSON

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

# Without the current folder, which -c puts first: a file onnx.py in it must not hide the package.
_PROGRAM = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [{root!r}]; from trtopt.bench.probe import main; main()"
)
_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_WATCH_EVERY = 0.005
_MEASURE = 300.0
_FEWEST = 5
_LONG = 5000.0
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to run, where, at which batch size, and how much memory it may take in bytes (0 on `cuda`: what is free).

    `builder` is what built it where it is an engine, else empty. `host` is the most memory that the process may take on
    the host, in bytes (0: it is not watched).
    """

    path: Path
    builder: str
    sizes: Sizes
    device: Literal["cpu", "cuda"]
    batch: int
    limit: int
    host: int = 0
    cuda: CudaOptions = field(default_factory=CudaOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of it: bytes taken in all (`base`: before the model was loaded), by weights (0: the backend does not
    tell) and by inputs and outputs, the limit that held, the median latency in ms, with copies where there are any; or
    in `failed` why it does not fit, of which `reason` is the kind.

    On the CPU the memory is the most that was resident of the process, on the GPU the growth of what is in use there.
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
    """Try it in a fresh process, for `timeout` seconds at most.

    Raises:
        TrtoptError: it cannot be run at all, for a reason that is not its size.
    """
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered, tempfile.TemporaryFile() as said:
        asked.write(json.dumps(encode(question)).encode())
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(root=_ROOT)],
            stdin=asked,
            stdout=answered,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        try:
            stopped = _watch(process, question, timeout)
        finally:
            process.kill()
            process.wait()
        answered.seek(0)
        said.seek(0)
        reply, log = answered.read(), said.read().decode(errors="replace").strip()
    if stopped is not None:
        return stopped
    if process.returncode or not reply:
        return _died(question, process.returncode, log)
    answer = json.loads(reply.splitlines()[-1])  # before it stands what libraries print
    if "error" in answer:
        kind = getattr(errors, answer["error"], ModelError)  # an error of CUDA's own is none of the tree's
        raise kind(answer["what"], why=answer["why"], fix=answer["fix"])
    return decode(Answer, answer)


def _watch(process: subprocess.Popen[bytes], question: Question, timeout: float) -> Answer | None:
    """Wait for the process; end it, and say why, when it takes too much memory or time."""
    end = time.monotonic() + timeout
    while process.poll() is None:
        taken = resident(process.pid) if question.host else 0
        if taken > question.host and question.device == "cpu":
            return Answer(memory=taken, limit=question.limit, failed="it takes more than the limit")
        if taken > question.host:
            return Answer(limit=question.limit, failed="the host has no memory for its inputs and outputs")
        if time.monotonic() > end:
            return Answer(limit=question.limit, failed=f"it did not end within {timeout:.0f} s", reason="time")
        time.sleep(_WATCH_EVERY)
    return None


def _died(question: Question, code: int, log: str) -> Answer:
    last = log.splitlines()[-1] if log else ""
    if code == -signal.SIGKILL or "MemoryError" in log or "bad_alloc" in log:
        return Answer(limit=question.limit, failed="the machine has no memory for it")
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise ModelError(f"{question.path} cannot be run at batch {question.batch}", why=f"{reason} {last}".strip())


def main() -> None:
    """Answer the question on stdin."""
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
    from trtopt.engine.cuda import open_device

    with open_device() as device:
        free = device.free_bytes()
        limit = min(question.limit, free) if question.limit else free
        found = _run(question, limit, lambda: free - device.free_bytes())
        name = device.info.name
        return found if name in found.where else replace(found, where=f"{found.where}, {name}")


def _run(question: Question, limit: int, memory: Callable[[], int]) -> Answer:
    """Run the batch a few times, and say what it took; `memory` measures that while the model is loaded."""
    session: Session
    if question.builder:
        session = open_engine(question.path, question.builder)
    else:
        session = open_onnx(question.path, question.device, replace(question.cuda, memory_limit=limit))
    with contextlib.closing(session):
        ways = session.ways(random(question.sizes, question.batch))
        run = ways.with_copies or ways.plain  # what a caller waits for
        times: list[float] = []
        while len(times) < _FEWEST or sum(times) < _MEASURE:
            times.append(run())
            if sum(times) > _LONG:
                break
        taken, weights = memory(), session.weights
    failed = "it takes more than the limit" if limit and taken > limit else ""
    return Answer(
        where=session.where,
        memory=taken,
        weights=weights,
        inputs_outputs=ways.bytes,
        limit=limit,
        latency=statistics.median(times[len(times) // 2 :]),
        failed=failed,
    )


def _peak() -> int:
    """The most memory that was resident of this process, in bytes."""
    # Not getrusage's: its maximum is that of the parent until the program is loaded, where that was larger.
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resident()
