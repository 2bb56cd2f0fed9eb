"""The work of the child process that runs a framework: it exports a source, or runs it.

Touches: the folder that it is given, and anything that the source's own code touches.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.child import Say
from trtopt.export.request import Exported, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A source, and the folder of the files: `source.onnx`, or `feeds.npz` and `outputs.npz`."""

    request: Request
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """Answer to a run: the framework and its version. The outputs are in the folder."""

    framework: str


def export(task: Task, say: Say) -> Exported:  # noqa: ARG001 - a function of `trtopt.child`
    """Export the source with its framework to `source.onnx`."""
    exported: Exported = _framework(task.request).export(task.request, task.folder)
    return exported


def run(task: Task, say: Say) -> Ran:  # noqa: ARG001 - a function of `trtopt.child`
    """Run the source with its framework on `feeds.npz`, and write `outputs.npz`."""
    from trtopt.export.feeds import read_feeds, write_arrays

    framework = _framework(task.request)
    write_arrays(task.folder / "outputs.npz", framework.run(task.request, read_feeds(task.folder / "feeds.npz")))
    return Ran(framework=framework.name())


def _framework(request: Request) -> Any:
    return importlib.import_module(f"trtopt.export.{request.source.framework}")
