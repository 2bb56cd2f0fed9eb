"""Framework code in a child process, so that its memory use, its logging and its crashes do not affect trtopt.

Touches: starts a process; writes into the folder it is given.
"""

from __future__ import annotations

import contextlib
import json
import logging
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

# `python -c` puts the current folder first on sys.path, where a file named onnx.py would hide the package: drop it.
_PROGRAM = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [{root!r}]; from trtopt.export.worker import main; main()"
)
_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_MAX_LOG_CHARS = 300
_LOGGER = logging.getLogger(__name__)


def export(request: Request, folder: Path, timeout: float) -> Exported:
    """Export the source with its framework to `folder/source.onnx`, within `timeout` seconds.

    Raises:
        TrtoptError: raised by the framework's side, and passed on as it is.
        ModelError: the child process crashed, was killed, or exceeded the timeout.
    """
    reply = _run("export", request, folder, timeout)
    return decode(Exported, reply["exported"])


def run(
    request: Request, feeds: Sequence[Mapping[str, NDArray[np.generic]]], folder: Path, timeout: float
) -> tuple[str, list[list[NDArray[np.generic]]]]:
    """Run the source in its own framework, within `timeout` seconds.

    Returns:
        The framework with its version (`PyTorch 2.13`), and for each feed the source's outputs, in the order of the
        exported model's.

    Raises:
        TrtoptError: as `export`.
    """
    from trtopt.export.feeds import read_arrays, write_feeds

    write_feeds(folder / "feeds.npz", feeds)
    reply = _run("run", request, folder, timeout)
    outputs = read_arrays(folder / "outputs.npz")
    for name in ("feeds.npz", "outputs.npz"):
        (folder / name).unlink()
    return reply["framework"], outputs


def _run(task: str, request: Request, folder: Path, timeout: float) -> dict[str, Any]:
    """Perform one task (`export` or `run`) in a fresh process and return its reply."""
    (folder / "request.json").write_text(json.dumps({"task": task, "request": encode(request)}), encoding="utf-8")
    program = _PROGRAM.format(root=_ROOT)
    log_file, reply_file = folder / "child.log", folder / "reply.json"
    # Hide the GPU: an export does not need it, and TensorFlow would reserve its memory.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    with log_file.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **quiet},
            # A process group of its own, so that a timeout also ends the processes that the framework started.
            start_new_session=True,
        )
        try:
            exit_code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"the export of {request.source.text} took longer than {timeout:.0f} s",
                fix="Allow more time with --export-timeout",
            ) from error
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log = log_file.read_text(encoding="utf-8", errors="replace")
            _LOGGER.debug("log of the framework (%s of %s):\n%s", task, request.source.text, log.rstrip() or "(empty)")
    reply: dict[str, Any] | None = json.loads(reply_file.read_text(encoding="utf-8")) if reply_file.is_file() else None
    for file in (folder / "request.json", log_file, reply_file):
        file.unlink(missing_ok=True)
    if exit_code or reply is None:
        raise _crash(request, exit_code, log)
    if "error" in reply:
        error_class = getattr(errors, reply["error"])
        raise error_class(reply["what"], why=reply["why"], fix=reply["fix"])
    return reply


def _crash(request: Request, exit_code: int, log: str) -> ModelError:
    """Build the error for a child process that ended without a reply, from its exit code and its log."""
    process = f"the framework process that exports {request.source.text}"
    # Linux's out-of-memory killer sends SIGKILL; Python and C++ report a failed allocation in the log.
    if exit_code == -signal.SIGKILL or "MemoryError" in log or "bad_alloc" in log:
        return ModelError(
            f"{process} was killed",
            why="most likely it ran out of memory: a framework may need many times the size of the model",
            fix="Export to ONNX on a machine with more memory, and pass the ONNX file to trtopt",
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    cause = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return ModelError(f"{process} crashed", why=f"{cause}: {lines[-1][:_MAX_LOG_CHARS]}" if lines else cause)
