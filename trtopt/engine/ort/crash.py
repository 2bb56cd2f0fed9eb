"""Models that crash onnxruntime while it loads them: no exception can be caught then, so another process tries first.

onnxruntime 1.32 ends its process with a segmentation fault where a 16-bit Transpose is read by a MatMul with a 16-bit
weight: its default options fuse the two into an operator that has no 16-bit kernel on the CPU.

Touches: starts a process (`trtopt.child`); reads the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.child import DiedError, Say, call
from trtopt.engine.ort.rewritten import is_16_bit
from trtopt.errors import ModelError
from trtopt.graph.file import load_proto
from trtopt.requires import require

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A model to load with onnxruntime's default options."""

    model: Path


def check_loads(path: Path) -> None:
    """Check that onnxruntime's default options do not end the process that loads the model on the CPU.

    Raises:
        ModelError: they do.
    """
    if not (is_16_bit(path) and _fuses_transposes(load_proto(path).graph)):
        return
    try:
        call(_load, Load(model=path.resolve()))
    except DiedError as error:
        version = require("onnxruntime").__version__
        raise ModelError(
            f"onnxruntime {version} crashes while loading {path.name} with its default options",
            why=error.cause,
            fix="Load it with graph_optimization_level ORT_DISABLE_ALL, or use the engine",
        ) from error


def _fuses_transposes(graph: onnx.GraphProto) -> bool:
    """Return whether a MatMul reads the result of a Transpose, also through a Cast."""
    moved: set[str] = set()
    for node in graph.node:  # in topological order
        reads = not moved.isdisjoint(node.input)
        if node.op_type == "MatMul" and reads:
            return True
        if node.op_type == "Transpose" or (node.op_type == "Cast" and reads):
            moved.update(node.output)
    return False


def _load(request: Load, _: Say) -> bool:
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(request.model), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - who loads the model next reports it
        return False
    return True
