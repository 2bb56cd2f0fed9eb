"""A typed graph as onnxruntime must run it on a CPU so that its numbers are those of the 16-bit types.

onnxruntime has few 16-bit kernels on the CPU. It wraps the other nodes in casts of its own
(`InsertedPrecisionFreeCast_*`) and then drops the casts between neighbours, so that a chain of FP16 nodes really runs
in FP32 and shows too little drift; BF16 it mostly cannot run at all. Here every 16-bit node computes in FP32 and its
result is rounded by a pair of casts, FP32 -> 16-bit -> FP32, which onnxruntime keeps at every optimization level (a
test holds it to that). This is what tensor cores do: products summed in FP32, the result rounded once.

Dequantized INT8 is not rounded: an INT8 kernel multiplies the integers and applies the scale in FP32.

Touches: nothing on disk but the file it is asked to write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtopt.precision.graph import FLOAT_COMPUTE_FREE

if TYPE_CHECKING:
    import onnx_ir as ir

_EXACT = FLOAT_COMPUTE_FREE | frozenset(
    "Relu Max Min Clip Abs Neg Sign MaxPool GlobalMaxPool ReduceMax ReduceMin TopK".split()
)
"""Operators whose result is one of their inputs, up to its sign: rounding it again changes nothing."""


def simulate(model: ir.Model) -> bool:
    """Rewrite the typed model in place; return whether it held any 16-bit computation."""
    import onnx_ir as ir

    halves = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    found = False
    for value in model.graph.initializers.values():
        if value.dtype in halves and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(model.graph):
        for output in node.outputs:
            dtype = output.dtype
            if dtype not in halves:
                continue
            found = True
            output.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
            if node.op_type == "ConstantOfShape":
                fill = node.attributes["value"].as_tensor().numpy().astype(np.float32)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill))
            if node.op_type == "Cast" or node.op_type not in _EXACT:
                _round(model.graph, node, output, dtype)
    return found


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    import onnx_ir as ir

    uses = list(value.uses())
    low = ir.Value(name=f"{value.name}/rounded_16", type=ir.TensorType(dtype), shape=value.shape)
    high = ir.Value(name=f"{value.name}/rounded", type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
    down = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[low], name=f"{value.name}/round_down")
    up = ir.node("Cast", [low], {"to": int(ir.DataType.FLOAT)}, outputs=[high], name=f"{value.name}/round_up")
    graph.insert_after(node, [down, up])
    for use in uses:
        use.node.replace_input_with(use.idx, high)
