"""A typed graph as onnxruntime must run it on a CPU so that its numbers are those of the 16-bit types.

onnxruntime has few 16-bit kernels on the CPU. It wraps the other nodes in casts of its own
(`InsertedPrecisionFreeCast_*`) and then drops the casts between neighbors, so that a chain of FP16 nodes really runs
in FP32 and shows too little drift; BF16 it mostly cannot run at all. Here every 16-bit node computes in FP32 and its
result is rounded by a pair of casts, FP32 -> 16-bit -> FP32, which onnxruntime keeps at every optimization level (a
test holds it to that). This is what tensor cores do: products summed in FP32, the result rounded once.

Dequantized INT8 is not rounded: an INT8 kernel multiplies the integers and applies the scale in FP32.

Touches: nothing on disk but the file it is asked to write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtopt.precision.graph import FLOAT_COMPUTE_FREE, cast, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir

_EXACT = FLOAT_COMPUTE_FREE | frozenset(
    "Relu Max Min Clip Abs Neg Sign MaxPool GlobalMaxPool ReduceMax ReduceMin TopK".split()
)
"""Operators whose result is one of their inputs, up to its sign: rounding it again changes nothing."""

_RETYPES = frozenset({"Cast", "CastLike"})


def simulate(model: ir.Model) -> bool:
    """Rewrite the typed model in place; return whether it held any 16-bit computation.

    Inputs and outputs keep their types. The types of all tensors must have been inferred.
    """
    graph, taken = model.graph, names(model.graph)
    made = [(index, value) for index, value in enumerate(graph.outputs) if value.producer() is not None]
    narrow = [(index, value, value.dtype) for index, value in made if value.dtype is not None and _is_half(value)]
    found = False
    for value in [value for value in graph.inputs if _is_half(value)]:
        _widen_input(graph, value, taken)
        found = True
    for inner in (graph, *graph.subgraphs()):
        for value in [*inner.initializers.values(), *(inner.inputs if inner is not graph else ())]:
            if _is_half(value):
                _widen_constant(value)
        for node in list(inner):
            found = _widen_results(inner, node, taken) or found
    for index, value, dtype in narrow:
        name, value.name = value.name or "", unique(f"{value.name}/wide", taken)
        graph.outputs[index] = cast(graph, graph.outputs[index], dtype, name, taken)
    return found


def _is_half(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _widen_input(graph: ir.Graph, value: ir.Value, taken: set[str]) -> None:
    """Let everything read a 16-bit input through a cast to FP32."""
    import onnx_ir as ir

    uses = list(value.uses())
    wide = cast(graph, value, ir.DataType.FLOAT, unique(f"{value.name}/wide", taken), taken)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)


def _widen_constant(value: ir.Value) -> None:
    import onnx_ir as ir

    if value.const_value is not None:
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_results(graph: ir.Graph, node: ir.Node, taken: set[str]) -> bool:
    """Let one node compute in FP32, and round its 16-bit results; return whether it had any."""
    import onnx_ir as ir

    narrow = [(value, value.dtype) for value in node.outputs if value.dtype is not None and _is_half(value)]
    for value, dtype in narrow:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if node.op_type in _RETYPES or node.op_type not in _EXACT:
            _round(graph, value, dtype, taken)
    if narrow:
        for name in ("to", "dtype", "output_dtype"):
            if name in node.attributes:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        if node.op_type in ("Constant", "ConstantOfShape"):
            fill = node.attributes["value"].as_tensor().numpy().astype(np.float32)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill))
    return bool(narrow)


def _round(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, taken: set[str]) -> None:
    """Put a pair of casts behind a value: what reads it, and what the graph gives out, is rounded to `dtype`."""
    import onnx_ir as ir

    uses = list(value.uses())
    low = cast(graph, value, dtype, unique(f"{value.name}/rounded_16", taken), taken)
    high = cast(graph, low, ir.DataType.FLOAT, unique(f"{value.name}/rounded", taken), taken)
    for use in uses:
        use.node.replace_input_with(use.idx, high)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = high
