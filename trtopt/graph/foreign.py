"""Types of the tensors that operators of other domains compute, such as com.microsoft's, which ONNX cannot infer.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_SHAPE_BYTES = 1024  # an initializer up to this size may be a shape, whose values tell other shapes


def infer_foreign(model: ir.Model) -> bool:
    """Add the types and shapes of tensors that have none, where onnxruntime knows them, and return whether any has.

    The model is changed in place. Operators that onnxruntime does not have, such as those of a TensorRT plug-in, stay
    without types.
    """
    import onnx_ir as ir

    from trtopt.requires import require

    untyped = {value.name: value for node in model.graph for value in node.outputs if value.name and value.type is None}
    if not untyped or all(node.domain in _STANDARD for node in model.graph):
        return False
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    skeleton = _skeleton(model, untyped).SerializeToString()
    try:
        session = ort.InferenceSession(skeleton, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - it has several kinds
        return False
    for output in session.get_outputs():
        tensor = re.fullmatch(r"tensor\((\w+)\)", output.type)
        if tensor:
            untyped[output.name].type = ir.TensorType(ir.DataType[tensor[1].upper()])
            untyped[output.name].shape = ir.Shape(output.shape)
    return True


def _skeleton(model: ir.Model, outputs: Iterable[str]) -> onnx.ModelProto:
    """Return the model with other outputs, whose types are left out, and with inputs in place of its large weights."""
    import onnx
    import onnx_ir as ir

    small, large = list[onnx.TensorProto](), list[ir.Value]()
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes <= _SHAPE_BYTES:
            small.append(ir.to_proto(value.const_value))
            small[-1].name = value.name or ""
        else:
            large.append(value)
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in model.graph],
        "skeleton",
        [ir.to_proto(value) for value in [*model.graph.inputs, *large]],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        small,
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
