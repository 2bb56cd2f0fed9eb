"""`trtopt inspect`: what a model or a run directory holds, and what a conversion would decide.

Touches: reads the model, and prepares it in a temporary folder; TensorRT's parser, if asked for.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.engine import missing_operators
from trtopt.engine.trt.refusal import Refusal
from trtopt.errors import UsageError
from trtopt.events import silent
from trtopt.inspection import Inspection
from trtopt.plan import BuildPlan
from trtopt.stages.target import Target
from trtopt.types import CalibrationTable, Decision

if TYPE_CHECKING:
    import onnx_ir as ir

INT8 = Target(precision="int8", rest="fp16", bias_correction=False)


def look(path: Path, *, tensorrt: bool = False, target: Target | None = None) -> Inspection:
    """Return the contents of the model at `path`; with `tensorrt`, also the nodes that TensorRT does not support.

    `target` is the precision that a conversion would be asked for: `INT8`, unless another one is given.

    Raises:
        EnvironmentUnableError: `tensorrt` is set, but TensorRT is not available.
        UsageError: `path` does not exist, or the target names no node, or is given for a model whose precisions are
            decided already.
        ModelError: the model cannot be read or prepared, or no manifest records it.
    """
    from trtopt.candidate import resolve
    from trtopt.graph.file import load_ir

    candidate = resolve(path)
    if target is not None and candidate.typed:
        raise UsageError("a precision has no effect", why=f"those of {path} are decided", fix="Give the FP32 model")
    target = target or INT8
    # First, because it refuses an invalid model.
    decisions = candidate.typed.decisions if candidate.typed else _would_decide(candidate.onnx.path, target)
    model = load_ir(candidate.onnx.path)
    asked, refused = _ask(candidate.onnx.path) if tensorrt else ("", ())
    parameters = 0
    weights: Counter[str] = Counter()
    for tensor in _weights(model.graph):
        parameters += tensor.size
        weights[tensor.dtype.name.lower()] += tensor.nbytes
    return Inspection(
        path=path,
        onnx=candidate.onnx,
        operators=dict(Counter(node.op_type for node in model.graph).most_common()),
        parameters=parameters,
        weights=dict(weights.most_common()),
        decided="typed" if candidate.typed else f"{target.precision} would",
        decisions=decisions,
        engine=candidate.engine,
        asked=asked,
        refused=refused,
    )


def _weights(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors of initializers and of Constant nodes, as which some converters write weights."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    for node in graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()


def _ask(path: Path) -> tuple[str, tuple[Refusal, ...]]:
    """Return the name of the TensorRT in use, and the nodes that its parser does not support."""
    from trtopt.engine.trt import apart
    from trtopt.engine.trt.locate import find
    from trtopt.engine.trt.refusal import explain

    trt = find()
    return trt.title, explain(path, apart.check(trt, path, silent).rejections)


def _would_decide(path: Path, target: Target) -> tuple[Decision, ...]:
    """Return the decisions of a conversion without samples: those for the prepared graph, which is converted.

    Raises:
        UsageError: the precision is unknown, or the target names no node.
        ModelError: the model cannot be prepared.
    """
    from trtopt.graph.file import load_ir
    from trtopt.graph.prepare import prepare
    from trtopt.graph.widen import in_fp32, is_in_fp32
    from trtopt.precision import lowest_opset, precision
    from trtopt.precision.passes.given import is_quantized
    from trtopt.precision.passes.placement import place
    from trtopt.stages.precision import request

    wanted = precision(target.precision)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        source = path
        if not is_in_fp32(path):
            source = Path(folder) / "widened.onnx"
            in_fp32(path, source)
        opset, lacks = lowest_opset(target.precision, target.rest), missing_operators(BuildPlan())
        prepared = prepare(source, Path(folder), min_opset=opset, profile=(), lacks=lacks)
        model = load_ir(prepared.path)
        asked = request(model, target, None, None)
        if wanted.FORMAT.scaled and not is_quantized(model.graph):
            # Which nodes are quantized does not depend on their scales.
            scales = dict.fromkeys(place(model, asked.keep).tensors(), 1.0)
            asked = replace(asked, table=CalibrationTable(method="", scales=scales))
        return wanted.apply(model, asked)
