"""Inspection of an ONNX file, a run directory or an engine, without running it.

Touches: reads the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtopt.engine.refusal import Refusal
from trtopt.types import Decision, Engine, OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Contents of a model.

    Attributes:
        path: the inspected file or directory.
        onnx: its ONNX model.
        operators: the number of nodes by operator.
        parameters: the number of elements in all constants.
        weights: the size of the constants by dtype, in bytes.
        decided: `typed` if the decisions were made by a conversion, `int8 would` if they are those of one to INT8.
        decisions: the precision of each node. Empty for a model that is already quantized.
        engine: the engine of a run directory.
        asked: the TensorRT whose parser was asked about unsupported nodes. Empty if it was not asked.
        refused: the nodes that it does not support.
    """

    path: Path
    onnx: OnnxModel
    operators: Mapping[str, int]
    parameters: int
    weights: Mapping[str, int]
    decided: str
    decisions: tuple[Decision, ...]
    engine: Engine | None = None
    asked: str = ""
    refused: tuple[Refusal, ...] = ()


def look(path: Path, *, tensorrt: bool = False) -> Inspection:
    """Return the contents of the model at `path`; with `tensorrt`, also the nodes that TensorRT does not support.

    Raises:
        EnvironmentUnableError: `tensorrt` is set, but TensorRT is not available.
        UsageError: `path` does not exist.
        ModelError: the model cannot be read, or no manifest records it.
    """
    from trtopt.candidate import resolve
    from trtopt.export.onnx import load_ir

    candidate = resolve(path)
    model = load_ir(candidate.onnx.path)
    asked, refused = _ask(candidate.onnx.path) if tensorrt else ("", ())
    parameters = 0
    weights: Counter[str] = Counter()
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype is not None:
            parameters += value.const_value.size
            weights[value.dtype.name.lower()] += value.const_value.nbytes
    typed = candidate.typed
    return Inspection(
        path=path,
        onnx=candidate.onnx,
        operators=dict(Counter(node.op_type for node in model.graph).most_common()),
        parameters=parameters,
        weights=dict(weights.most_common()),
        decided="typed" if typed else "int8 would",
        decisions=typed.decisions if typed else _would_decide(candidate.onnx.path),
        engine=candidate.engine,
        asked=asked,
        refused=refused,
    )


def _ask(path: Path) -> tuple[str, tuple[Refusal, ...]]:
    """Return the name of the TensorRT in use, and the nodes that its parser does not support."""
    from trtopt.engine import tensorrt
    from trtopt.engine.refusal import explain

    trt = tensorrt.find(None)
    return trt.title, explain(path, tensorrt.check(trt, path))


def _would_decide(path: Path) -> tuple[Decision, ...]:
    """Return the decisions that a conversion to INT8 would make."""
    from trtopt.errors import ModelError
    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import infer_shapes
    from trtopt.precision.placement import place

    model = load_ir(path)
    infer_shapes(model)
    try:
        placement = place(model)
    except ModelError:  # the model is already quantized
        return ()
    return placement.decisions()
