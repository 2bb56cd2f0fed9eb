"""Simulation of 16-bit types: rewrites a typed graph so that onnxruntime computes faithful FP16 and BF16 on a CPU.

onnxruntime has few 16-bit kernels on the CPU. It inserts casts (`InsertedPrecisionFreeCast_*`) around the other nodes
and then removes the casts between neighbors, so that a chain of FP16 nodes actually runs in FP32 and shows too little
drift. Most BF16 nodes do not run at all. In the rewritten graph every 16-bit node computes in FP32, and two casts (FP32
-> 16-bit -> FP32) round its result. onnxruntime keeps these casts at every optimization level, which a test verifies.
Tensor cores do the same: they sum products in FP32 and round the result once.

Dequantized INT8 is not rounded: an INT8 kernel multiplies integers and applies the scale in FP32.

Touches: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtopt.graph.query import FLOAT_COMPUTE_FREE, cast, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir

_EXACT = FLOAT_COMPUTE_FREE | frozenset(
    "Relu Max Min Clip Abs Neg Sign MaxPool GlobalMaxPool ReduceMax ReduceMin TopK".split()
)
"""Operators whose result values occur in their inputs, up to the sign: rounding them again would change nothing."""

_RETYPES = frozenset({"Cast", "CastLike"})
"""Members of `_EXACT` that must be rounded all the same, as a cast to 16 bits changes the value."""


def simulate(model: ir.Model) -> bool:
    """Rewrite a typed model in place, and return whether it had any 16-bit computation.

    The types of all tensors must have been inferred. Inputs and outputs keep their types.
    """
    graph, taken = model.graph, names(model.graph)
    # Recorded before the types change. An output without a producer is an input, which keeps its type.
    outputs_16_bit = [
        (index, value, value.dtype)
        for index, value in enumerate(graph.outputs)
        if value.producer() is not None and value.dtype is not None and _is_16_bit(value)
    ]
    changed = False
    for value in [value for value in graph.inputs if _is_16_bit(value)]:
        _widen_input(graph, value, taken)
        changed = True
    for subgraph in (graph, *graph.subgraphs()):
        values = list(subgraph.initializers.values())
        if subgraph is not graph:  # the inputs of a loop's body, for example, take the types of what is passed in
            values.extend(subgraph.inputs)
        for value in values:
            if _is_16_bit(value):
                _widen_constant(value)
        for node in list(subgraph):
            changed = _widen_results(subgraph, node, taken) or changed
    # Cast the outputs back to their types. The cast takes over the output's name.
    for index, value, dtype in outputs_16_bit:
        name, value.name = value.name or "", unique(f"{value.name}/wide", taken)
        graph.outputs[index] = cast(graph, graph.outputs[index], dtype, name, taken)
    return changed


def _is_16_bit(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _widen_input(graph: ir.Graph, value: ir.Value, taken: set[str]) -> None:
    """Insert a cast to FP32 between a 16-bit input and its consumers."""
    import onnx_ir as ir

    uses = list(value.uses())
    wide = cast(graph, value, ir.DataType.FLOAT, unique(f"{value.name}/wide", taken), taken)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)


def _widen_constant(value: ir.Value) -> None:
    """Convert an initializer or a subgraph's input to FP32. The values of an initializer are 16-bit values already."""
    import onnx_ir as ir

    if value.const_value is not None:
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_results(graph: ir.Graph, node: ir.Node, taken: set[str]) -> bool:
    """Make a node compute in FP32, round its 16-bit results, and return whether it had any."""
    import onnx_ir as ir

    results_16_bit = [(value, value.dtype) for value in node.outputs if value.dtype is not None and _is_16_bit(value)]
    for value, dtype in results_16_bit:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if node.op_type in _RETYPES or node.op_type not in _EXACT:
            _round(graph, value, dtype, taken)
    if results_16_bit:
        # Nodes that state the type of their result, such as Cast and DequantizeLinear, must state FP32 now.
        for name in ("to", "dtype", "output_dtype"):
            if name in node.attributes:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        if node.op_type in ("Constant", "ConstantOfShape"):
            fill = node.attributes["value"].as_tensor().numpy().astype(np.float32)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill))
    return bool(results_16_bit)


def _round(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, taken: set[str]) -> None:
    """Insert a pair of casts after a value, so that its consumers and the graph's outputs get it rounded to `dtype`."""
    import onnx_ir as ir

    uses = list(value.uses())
    low = cast(graph, value, dtype, unique(f"{value.name}/rounded_16", taken), taken)
    high = cast(graph, low, ir.DataType.FLOAT, unique(f"{value.name}/rounded", taken), taken)
    for use in uses:
        use.node.replace_input_with(use.idx, high)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = high
