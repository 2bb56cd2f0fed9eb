"""Functions that `trtopt.child` calls in a process of their own."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from trtopt.child import Say
from trtopt.engine.cuda.backend import CudaError
from trtopt.events import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    text: str = ""
    folder: Path = Path()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    text: str


def echo(task: Task, say: Say) -> Reply:
    print("not a message")
    say(Progress("child", 1, 2))
    return Reply(text=task.text)


def dies(task: Task, say: Say) -> Reply:
    say("the middle")
    tempfile.mkdtemp()
    (task.folder / "temporary").write_text(tempfile.gettempdir())
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL if task.text == "killed" else signal.SIGSEGV)
    return Reply(text="")


def raises(task: Task, say: Say) -> Reply:
    if task.text == "known":
        raise CudaError("the GPU failed", why="it is tired", fix="Let it rest")
    raise ValueError("a size\nis wrong")


def waits(task: Task, say: Say) -> Reply:
    (task.folder / "pid").write_text(str(os.getpid()))
    say(Progress("child", 1, 2))
    time.sleep(60)
    return Reply(text="")
