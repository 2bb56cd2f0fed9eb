"""Weights that are transposed after Q/DQ, as PyTorch and ModelOpt write a linear layer, are transposed before it.

TensorRT reads a weight in 8 bits where DQ is the last node before the product.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtopt.graph.query import add_initializer, attribute, constant, names, producer, unique

if TYPE_CHECKING:
    import onnx_ir as ir


def transpose_weights(model: ir.Model) -> None:
    """Replace each Transpose of a quantized constant by Q/DQ nodes of the transposed constant, in place."""
    taken = names(model.graph)
    for node in list(model.graph):
        pair = _pair(node)
        if pair and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(_quantized(model.graph, node, pair, taken))
            model.graph.remove(node, safe=True)
            for unread in reversed(pair):
                if not unread.outputs[0].uses() and not unread.outputs[0].is_graph_output():
                    model.graph.remove(unread, safe=True)


def _pair(node: ir.Node) -> list[ir.Node]:
    """Return the Q, if any, and the DQ between a constant and a Transpose; empty if the node is anything else."""
    dq = producer(node.inputs[0]) if node.op_type == "Transpose" else None
    if dq is None or dq.op_type != "DequantizeLinear":
        return []
    q = producer(dq.inputs[0])
    pair = [q, dq] if q is not None and q.op_type == "QuantizeLinear" else [dq]
    is_weight = constant(pair[0].inputs[0]) is not None
    return pair if is_weight and not any(attribute(each, "block_size", 0) for each in pair) else []


def _quantized(graph: ir.Graph, node: ir.Node, pair: list[ir.Node], taken: set[str]) -> ir.Value:
    """Insert the constant, transposed as by `node`, with copies of its Q/DQ nodes, and return the result."""
    import onnx_ir as ir

    source = pair[0].inputs[0]
    array = constant(source)
    assert source is not None
    assert source.dtype is not None
    assert array is not None
    axes = list(range(array.ndim))
    perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else axes[::-1]
    transposed = np.ascontiguousarray(array.transpose(perm))
    value = add_initializer(graph, unique(f"{source.name}/transposed", taken), transposed, source.dtype)
    for old in pair:
        attributes = dict(old.attributes)
        if array.ndim > 1:
            axis = attribute(old, "axis", 1) % array.ndim
            attributes["axis"] = ir.AttrInt64("axis", perm.index(axis))
        result = ir.Value(name=unique(f"{old.outputs[0].name}/transposed", taken), type=old.outputs[0].type)
        result.shape = ir.Shape(transposed.shape)
        name = unique(f"{old.name or old.outputs[0].name}/transposed", taken)
        new = ir.Node("", old.op_type, [value, *old.inputs[1:]], attributes.values(), outputs=[result], name=name)
        graph.insert_before(node, new)
        value = result
    return value
