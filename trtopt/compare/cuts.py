"""Graphs cut at chosen tensors, which become outputs, or inputs in place of what computes them.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtopt.compare.taps import Point, is_floating
from trtopt.graph.query import cast, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir


def show(model: ir.Model, tensors: Sequence[str]) -> dict[str, str]:
    """Make floating-point tensors the outputs of the graph, as float32, and remove the nodes that are then not needed.

    Returns:
        The name of the output for each tensor.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph, taken = model.graph, names(model.graph)
    values = {value.name: value for node in graph for value in node.outputs}
    outputs = {}
    for name in dict.fromkeys(tensors):
        value = values[name]
        if value.dtype != ir.DataType.FLOAT:
            value = cast(graph, value, ir.DataType.FLOAT, unique(f"{name}/shown", taken), taken)
        outputs[name] = value
    graph.outputs[:] = list(outputs.values())
    RemoveUnusedNodesPass()(model)
    return {name: value.name or "" for name, value in outputs.items()}


def give(model: ir.Model, chosen: Sequence[Point]) -> dict[str, str]:
    """Replace these points by new float32 graph inputs for all of their consumers.

    Returns:
        The name of the input for each point that has a consumer, by `Point.tensor`.
    """
    import onnx_ir as ir

    graph, taken = model.graph, names(model.graph)
    values = {value.name: value for node in graph for value in node.outputs}
    inputs = {}
    for point in chosen:
        chain = [values[name] for name in point.chain]
        # The casts and Q/DQ of the chain itself keep their inputs: their errors belong to the node.
        inner = {value.producer() for value in chain[1:]}
        name = unique(f"{point.tensor}/given", taken)
        source = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=chain[-1].shape)
        for value in chain:
            uses = [use for use in value.uses() if use.node not in inner]
            if not uses or not is_floating(value):
                continue
            replacement = source
            if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
                replacement = cast(graph, source, value.dtype, unique(f"{value.name}/given_cast", taken), taken)
            for use in uses:
                use.node.replace_input_with(use.idx, replacement)
        if source.uses():
            graph.inputs.append(source)
            inputs[point.tensor] = name
    return inputs
