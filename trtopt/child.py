"""A function in a fresh process: typed request and answer, events on the way, and its log kept if it fails.

The parent starts Python, and writes one JSON line with the function and the request to stdin, which stays open: its end
tells the child that the parent is gone. The child writes JSON lines: its events, where it is at, and at the end its
result or its error. Everything else that it prints is its log.

The child's temporary files lie in a folder of its own, which the parent deletes, also if the child was killed.

Touches: starts a process; a temporary folder; the log of a child that failed, in the folder for temporary files.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from trtopt.codec import decode, encode
from trtopt.errors import TrtoptError
from trtopt.events import Emit, Event, Progress, Warned, silent

R = TypeVar("R")
A = TypeVar("A")
Say = Callable[[Event | str], None]
"""Sends an event to the parent. A text tells where the child is at, for the error about a crash."""

# `python -c` puts the current folder first on sys.path, where a file named onnx.py would hide the package: drop it.
_PROGRAM = "import sys; sys.path[:] = [p for p in sys.path if p] + [{root!r}]; from trtopt.child import main; main()"
_ROOT = str(Path(__file__).resolve().parent.parent)
_EVENTS: dict[str, type[Progress | Warned]] = {"Progress": Progress, "Warned": Warned}
_POLL_SECONDS = 0.005
_LOG_CHARS = 300
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a child runs.

    Attributes:
        emit: receives its events.
        environment: variables to set for it.
        guard: called with its process id every few milliseconds; a result other than None ends it (`StoppedError`).
        grace: the seconds that it has to end by itself, after an interrupt, before it is killed.
    """

    emit: Emit = silent
    environment: Mapping[str, str] = field(default_factory=dict)
    guard: Callable[[int], object | None] | None = None
    grace: float = 0.0


class StoppedError(Exception):
    """The guard ended the child; `reason` is its result."""

    def __init__(self, reason: Any) -> None:
        super().__init__(reason)
        self.reason = reason


class DiedError(Exception):
    """The child ended without an answer.

    Attributes:
        cause: the signal, the exit code, or the exception that is not a `TrtoptError`, on one line.
        at: where the child last said it was.
        last_line: the last line of its log.
        out_of_memory: whether memory was most likely exhausted.
        raised: whether `cause` is an exception.
        log: the file that holds its log; None if it printed nothing.
    """

    def __init__(self, code: int, state: Mapping[str, Any], log: str) -> None:
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        self.raised = "raised" in state
        signalled = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self.cause = str(state.get("raised", signalled))
        self.at = str(state.get("at", ""))
        self.last_line = lines[-1][:_LOG_CHARS] if lines else ""
        # Linux's out-of-memory killer sends SIGKILL; Python and C++ report a failed allocation in the log.
        self.out_of_memory = code == -signal.SIGKILL or "MemoryError" in log or "bad_alloc" in log
        self.log = _kept(log) if lines else None
        super().__init__(self.cause)

    @property
    def advice(self) -> str:
        """Where the log is, as a sentence; empty without one."""
        return f"The log is in {self.log}" if self.log else ""


def call(function: Callable[[R, Say], A], request: R, terms: Terms | None = None) -> A:
    """Call a function of a module in a fresh process, and return its result.

    Its annotations say which dataclasses the request and the result are.

    Raises:
        TrtoptError: as the function raised it.
        DiedError: the process ended without an answer, or the function raised another exception.
        StoppedError: the guard ended it.
    """
    terms = terms or Terms()
    name = f"{function.__module__}:{function.__qualname__}"
    state: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="trtopt-child-") as scratch, tempfile.TemporaryFile() as log_file:
        _LOGGER.debug("%s starts in a process of its own", name)
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(root=_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env={**os.environ, "TMPDIR": scratch, **terms.environment},
            # A group of its own: Ctrl-C in a terminal does not reach it, and what it started ends with it.
            start_new_session=True,
        )
        ended, stopped = threading.Event(), list[object]()
        guard = threading.Thread(target=_watch, args=(process, terms.guard, ended, stopped), daemon=True)
        guard.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended at once: its log says why
                assert process.stdin is not None
                process.stdin.write(json.dumps({"function": name, "request": encode(request)}).encode() + b"\n")
                process.stdin.flush()
            assert process.stdout is not None
            _follow(process.stdout, state, terms.emit)
            code = process.wait()
        finally:
            ended.set()
            guard.join()
            _stop(process, terms.grace)
        log_file.seek(0)
        log = log_file.read().decode(errors="replace")
    _LOGGER.debug("%s ended with %s; its log:\n%s", name, code, log.rstrip() or "(empty)")
    if stopped:
        raise StoppedError(stopped[0])
    if "result" in state:
        return typing.cast(A, decode(typing.get_type_hints(function)["return"], state["result"]))
    if "error" in state:
        raise _error(state["error"])
    raise DiedError(code, state, log)


def _watch(
    process: subprocess.Popen[bytes],
    guard: Callable[[int], object | None] | None,
    ended: threading.Event,
    stopped: list[object],
) -> None:
    """Kill the process once the guard says so."""
    while guard is not None and not ended.wait(_POLL_SECONDS):
        reason = guard(process.pid)
        if reason is not None:
            stopped.append(reason)
            _signal(process, signal.SIGKILL)
            return


def _follow(stream: IO[bytes], state: dict[str, Any], emit: Emit) -> None:
    """Read the child's messages until it ends: emit its events, and put everything else into `state`."""
    for line in stream:
        message = json.loads(line)
        if "event" in message:
            emit(decode(_EVENTS[message["event"]], message["fields"]))
        else:
            state.update(message)


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """End the child, if it still runs: first as by Ctrl-C if it has time."""
    if process.poll() is None and grace:
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    if process.poll() is None:
        _signal(process, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _error(fields: Mapping[str, str]) -> TrtoptError:
    """Return the error that the child raised, of the class that it names."""
    module, _, name = fields["type"].partition(":")
    kind: type[TrtoptError] = getattr(importlib.import_module(module), name)
    return kind(fields["what"], why=fields["why"], fix=fields["fix"])


def _kept(log: str) -> Path:
    """Write a log to a file that stays, and return its path."""
    with tempfile.NamedTemporaryFile("w", prefix="trtopt-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(log)
    return Path(file.name)


def main() -> None:
    """Run as the child: read the request from stdin, call the function, and write messages as lines of JSON."""
    # Libraries may print to stdout. The messages have a file descriptor of their own.
    messages = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        messages.write(json.dumps(message).encode() + b"\n")

    def say(news: Event | str) -> None:
        send({"at": news} if isinstance(news, str) else {"event": type(news).__name__, "fields": encode(news)})

    task = json.loads(_read_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        module, _, name = task["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        hints = typing.get_type_hints(function)
        request = decode(hints[next(iter(hints))], task["request"])
        send({"result": encode(function(request, say))})
    except TrtoptError as error:
        kind = f"{type(error).__module__}:{type(error).__qualname__}"
        send({"error": {"type": kind, "what": error.what, "why": error.why, "fix": error.fix}})
        traceback.print_exc()  # for the log, which is shown with `logging`
    except MemoryError:
        raise  # without an answer: the parent recognizes it in the log
    except Exception as error:  # noqa: BLE001 - the answer is how the parent learns of it
        send({"raised": _brief(error)})
        traceback.print_exc()
    except KeyboardInterrupt:
        sys.exit(130)


def _brief(error: Exception) -> str:
    """Return an exception on one line, `ValueError: its text`, with the text cut."""
    text = " ".join(str(error).split())
    ellipsis = "..." if len(text) > _LOG_CHARS else ""
    return f"{type(error).__name__}: {text[:_LOG_CHARS]}{ellipsis}" if text else type(error).__name__


def _read_line() -> bytes:
    """Return the task from stdin, without Python's buffer: the thread below would hold its lock at the end."""
    data = b""
    while not data.endswith(b"\n"):
        part = os.read(0, 1 << 20)
        if not part:
            os._exit(1)
        data += part
    return data


def _end_with_parent() -> None:
    """End this process when its parent has ended, which closes the other end of stdin."""
    while os.read(0, 1):
        pass
    os._exit(1)
