"""TensorRT in a process of its own: its parser can crash, and must not take trtopt with it.

TensorRT 8.5.3.1, for example, ends its process with a segmentation fault at a Range over a dynamic size. The child
streams its events, and the node that the parser is at, so that a crash is an error that names it.

Touches: starts a process; the child does what `builder` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trtopt import errors
from trtopt.codec import decode, encode
from trtopt.engine import BuildPlan
from trtopt.engine.trt.locate import TensorRT, find
from trtopt.errors import BuildError, TrtoptError
from trtopt.events import Emit, Event, Progress, Warned
from trtopt.types import Engine, ShapeRange, Support, TypedModel

# `python -c` puts the current folder first on sys.path, where a file named onnx.py would hide the package: drop it.
_PROGRAM = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [{root!r}]\n"
    "from trtopt.engine.trt.apart import main; main()"
)
_ROOT = str(Path(__file__).resolve().parent.parent.parent.parent)
_EVENTS: dict[str, type[Progress | Warned]] = {"Progress": Progress, "Warned": Warned}
_LOG_CHARS = 300
_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The work of the child: to check the model at `model`, or to build an engine from `typed`."""

    tensorrt: str
    model: Path | None = None
    typed: TypedModel | None = None
    profile: tuple[ShapeRange, ...] = ()
    options: BuildPlan | None = None
    out: Path | None = None


def check(trt: TensorRT, model: Path, emit: Emit) -> Support:
    """Return the nodes that TensorRT rejects, as `builder.check`.

    Raises:
        TrtoptError: as `builder.check`.
        BuildError: TensorRT crashed.
    """
    return decode(Support, _run(trt, Task(tensorrt=trt.name, model=model.resolve()), emit))


def build(
    trt: TensorRT, typed: TypedModel, profile: tuple[ShapeRange, ...], options: BuildPlan, out: Path, *, emit: Emit
) -> Engine:
    """Build an engine, as `builder.build`.

    Raises:
        TrtoptError: as `builder.build`.
        BuildError: TensorRT crashed.
        KeyboardInterrupt: Ctrl-C cancelled the build, and nothing was written.
    """
    task = Task(tensorrt=trt.name, typed=typed, profile=profile, options=options, out=out)
    return decode(Engine, _run(trt, task, emit))


def _run(trt: TensorRT, task: Task, emit: Emit) -> Any:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(root=_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C in a terminal reaches a whole process group. The child has its own, and is told below.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        state: dict[str, Any] = {"at": ""}
        try:
            process.stdin.write(json.dumps(encode(task)).encode() + b"\n")
            process.stdin.flush()  # it stays open: its end tells the child that this process is gone
            _follow(process.stdout, state, emit)
            code = process.wait()
        except BrokenPipeError:
            code = process.wait()
        finally:
            _stop(process)
        log.seek(0)
        text = log.read().decode(errors="replace")
    if "result" in state:
        return state["result"]
    if "error" in state:
        error = state["error"]
        kind: type[TrtoptError] = getattr(errors, error["type"])
        raise kind(error["what"], why=error["why"], fix=error["fix"])
    raise _crash(trt, code, state["at"], text)


def _follow(stream: IO[bytes], state: dict[str, Any], emit: Emit) -> None:
    """Read the child's messages until it ends: emit its events, and put everything else into `state`."""
    for line in stream:
        message = json.loads(line)
        if "event" in message:
            emit(decode(_EVENTS[message["event"]], message["fields"]))
        else:
            state.update(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child, if it still runs: first as by Ctrl-C, on which the builder stops at its next step."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _crash(trt: TensorRT, code: int, at: str, log: str) -> BuildError:
    """Return the error for a child that ended without a result."""
    where = f"at {at}" if at else "while it built the engine"
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        cause += ": most likely it ran out of memory"
    last = log.strip().splitlines()[-1:] if log.strip() else []
    return BuildError(
        f"{trt.title} crashed {where}",
        why="; ".join([cause, *(line[:_LOG_CHARS] for line in last)]),
        fix="Fix the sizes of dynamic inputs with --shape, or use a later TensorRT",
    )


def main() -> None:
    """Run as the child: read the task from stdin, and write messages to stdout, one JSON object per line."""
    # TensorRT's libraries may print to stdout. The messages have a file descriptor of their own.
    messages = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        messages.write(json.dumps(message).encode() + b"\n")

    def emit(event: Event) -> None:
        send({"event": type(event).__name__, "fields": encode(event)})

    task = decode(Task, json.loads(_read_line()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        send({"result": encode(_perform(task, emit, lambda node: send({"at": node})))})
    except TrtoptError as error:
        kind = type(error).__name__
        send({"error": {"type": kind, "what": error.what, "why": error.why, "fix": error.fix}})
    except OSError as error:
        why = error.strerror or str(error)
        send({"error": {"type": "BuildError", "what": "the engine cannot be written", "why": why, "fix": ""}})
    except KeyboardInterrupt:
        sys.exit(130)


def _read_line() -> bytes:
    """Return the task from stdin, without Python's buffer: the thread below would hold its lock at the end."""
    data = b""
    while not data.endswith(b"\n"):
        part = os.read(0, 1 << 20)
        if not part:
            os._exit(1)
        data += part
    return data


def _perform(task: Task, emit: Emit, at: Any) -> Engine | Support:
    from trtopt.engine.trt import builder
    from trtopt.engine.trt.diagnosis import logger

    trt = find(task.tensorrt)
    logger(trt.module.__name__).at = at
    if task.typed is None or task.out is None:
        assert task.model is not None
        return Support(by=trt.name, rejections=builder.check(trt, task.model))
    options = task.options or BuildPlan()
    return builder.build(trt, task.typed, task.profile, options, task.out, emit=emit)


def _end_with_parent() -> None:
    """End this process when its parent has ended, which closes the other end of stdin."""
    while os.read(0, 1):
        pass
    os._exit(1)
