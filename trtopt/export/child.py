"""Run a framework in a child process, so that its memory, its logging and its crashes stay out of ours.

Touches: starts a process; writes into the folder it is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt import errors
from trtopt.codec import decode, encode
from trtopt.errors import ModelError
from trtopt.export.request import Exported, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Without the current folder, which -c puts first: a file onnx.py in it must not hide the package.
_PROGRAM = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [{root!r}]; from trtopt.export.worker import main; main()"
)
_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_TAIL = 300


def export(request: Request, folder: Path, timeout: float) -> Exported:
    """Let the source's framework write `folder/source.onnx`.

    Raises:
        TrtoptError: what the framework's side raised; ModelError when it crashed, was killed, or took too long.
    """
    answer = _run("export", request, folder, timeout)
    return decode(Exported, answer["exported"])


def run(
    request: Request, feeds: Sequence[Mapping[str, NDArray[np.generic]]], folder: Path, timeout: float
) -> tuple[str, list[list[NDArray[np.generic]]]]:
    """Return what ran (`PyTorch 2.13`), and the source's own outputs for each feed, ordered as in the exported model.

    Raises:
        TrtoptError: as `export`.
    """
    from trtopt.export.feeds import read_arrays, write_feeds

    write_feeds(folder / "feeds.npz", feeds)
    answer = _run("run", request, folder, timeout)
    outputs = read_arrays(folder / "outputs.npz")
    for name in ("feeds.npz", "outputs.npz"):
        (folder / name).unlink()
    return answer["framework"], outputs


def _run(task: str, request: Request, folder: Path, timeout: float) -> dict[str, Any]:
    (folder / "request.json").write_text(json.dumps({"task": task, "request": encode(request)}), encoding="utf-8")
    program = _PROGRAM.format(root=_ROOT)
    log, reply = folder / "child.log", folder / "reply.json"
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **quiet},
            start_new_session=True,  # so that a time-out ends whatever the framework starts, too
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"the export of {request.source.text} took longer than {timeout:.0f} s",
                fix="Give it more time with --export-timeout",
            ) from error
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    answer: dict[str, Any] | None = json.loads(reply.read_text(encoding="utf-8")) if reply.is_file() else None
    for file in (folder / "request.json", log, reply):
        file.unlink(missing_ok=True)
    if code or answer is None:
        raise _crash(request, code, said)
    if "error" in answer:
        kind = getattr(errors, answer["error"])
        raise kind(answer["what"], why=answer["why"], fix=answer["fix"])
    return answer


def _crash(request: Request, code: int, said: str) -> ModelError:
    what = f"the framework that exports {request.source.text} died"
    if code == -signal.SIGKILL or "MemoryError" in said or "bad_alloc" in said:
        return ModelError(
            what.replace("died", "was killed"),
            why="most likely for want of memory: a framework may take many times the size of the model",
            fix="Export on a machine with more memory, and give the ONNX file here",
        )
    last = [line.strip() for line in said.splitlines() if line.strip()]
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ModelError(what, why=f"{name}: {last[-1][:_TAIL]}" if last else name)
