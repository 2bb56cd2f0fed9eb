"""Framework code in a child process, so that its memory use, its logging and its crashes do not affect trtopt.

Touches: starts a process (`trtopt.child`); writes into the folder it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trtopt.child import DiedError, Say, StoppedError, Terms, call
from trtopt.errors import ModelError
from trtopt.export import worker
from trtopt.export.request import Exported, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Hide the GPU: an export does not need it, and TensorFlow would reserve its memory.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
_A = TypeVar("_A")


def export(request: Request, folder: Path, timeout: float) -> Exported:
    """Export the source with its framework to `folder/source.onnx`, within `timeout` seconds.

    Raises:
        TrtoptError: raised by the framework's side, and passed on as it is.
        ModelError: the child process failed, was killed, or exceeded the timeout.
    """
    return _call(worker.export, request, folder, timeout)


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
    ran = _call(worker.run, request, folder, timeout)
    outputs = read_arrays(folder / "outputs.npz")
    for name in ("feeds.npz", "outputs.npz"):
        (folder / name).unlink()
    return ran.framework, outputs


def _call(function: Callable[[worker.Task, Say], _A], request: Request, folder: Path, timeout: float) -> _A:
    end = time.monotonic() + timeout
    terms = Terms(environment=_QUIET, guard=lambda _: True if time.monotonic() > end else None)
    try:
        return call(function, worker.Task(request=request, folder=folder), terms)
    except StoppedError as error:
        raise ModelError(
            f"the export of {request.source.text} took longer than {timeout:.0f} s",
            fix="Allow more time with --export-timeout",
        ) from error
    except DiedError as died:
        raise _failure(request, died) from died


def _failure(request: Request, died: DiedError) -> ModelError:
    """Return the error for a child process that ended without an answer."""
    process = f"the framework process that exports {request.source.text}"
    if died.out_of_memory:
        return ModelError(
            f"{process} was killed",
            why="most likely it ran out of memory: a framework may need many times the size of the model",
            fix="Export to ONNX on a machine with more memory, and pass the ONNX file to trtopt",
        )
    if died.raised:
        return ModelError("the export failed", why=died.cause, fix=died.advice)
    why = f"{died.cause}: {died.last_line}" if died.last_line else died.cause
    return ModelError(f"{process} crashed", why=why, fix=died.advice)
