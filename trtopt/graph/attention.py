"""Attention nodes (opset 23) written as the products that they are.

One exporter writes the same layer as an Attention node that another writes as MatMul, Softmax and MatMul. Only products
are quantized, every TensorRT knows them, and fuses them again.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtopt.graph.query import add_initializer, attribute, dims, is_float, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir

_INPUTS = 4  # queries, keys, values and mask; then come the past and lengths


def expand_attention(model: ir.Model) -> bool:
    """Replace the plain Attention nodes of the main graph, in place, and return whether there were.

    Plain is one of four axes, with as many heads for keys as for queries, without a past, and without a cap. A causal
    mask is written as a constant, and so needs fixed lengths.
    """
    taken = names(model.graph)
    plain = [node for node in model.graph if node.op_type == "Attention" and node.domain in ("", "ai.onnx")]
    plain = [node for node in plain if _is_plain(node)]
    for node in plain:
        _expand(node, taken)
    return bool(plain)


def _is_plain(node: ir.Node) -> bool:
    query, key, value = (dims(operand) for operand in node.inputs[:3])
    extra = any(operand is not None for operand in node.inputs[_INPUTS:])
    others = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    cap = node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0
    if extra or others or cap or not all(is_float(operand) for operand in node.inputs[:3]):
        return False
    if query is None or key is None or value is None or {len(query), len(key), len(value)} != {4} or query[3] is None:
        return False
    has_lengths = query[2] is not None and key[2] is not None
    return query[1] is not None and query[1] == key[1] and (has_lengths or not attribute(node, "is_causal", 0))


def _expand(node: ir.Node, taken: set[str]) -> None:
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    graph = node.graph
    assert isinstance(graph, ir.Graph)
    new: list[ir.Node] = []

    def add(op: str, inputs: Sequence[ir.Value | None], *attributes: ir.Attr) -> ir.Value:
        name = unique(f"{node.name or 'Attention'}/{op}", taken)
        output = ir.Value(name=f"{name}_output", type=node.outputs[0].type)
        new.append(ir.Node("", op, inputs, attributes, outputs=[output], name=name))
        return output

    def number(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        name = unique(f"{node.name or 'Attention'}/{name}", taken)
        return add_initializer(graph, name, array, ir.DataType.from_numpy(array.dtype))

    query, key, value = node.inputs[:3]
    sizes, lengths = dims(query) or (), dims(key) or ()
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else (sizes[3] or 1) ** -0.5
    transposed = add("Transpose", [key], ir.AttrInt64s("perm", [0, 1, 3, 2]))
    scores = add("Mul", [add("MatMul", [query, transposed]), number("scale", np.asarray(scale, np.float32))])
    masks: list[ir.Value] = [node.inputs[3]] if len(node.inputs) > 3 and node.inputs[3] is not None else []
    if attribute(node, "is_causal", 0):
        masks.append(number("causal", np.tri(sizes[2] or 0, lengths[2] or 0, dtype=np.bool_)))
    for mask in masks:
        if mask.dtype == ir.DataType.BOOL:
            scores = add("Where", [mask, scores, number("masked", np.asarray(-np.inf, np.float32))])
        else:
            scores = add("Add", [scores, mask])
    weights = add("Softmax", [scores], ir.AttrInt64("axis", -1))
    result = add("MatMul", [weights, value])
    replace_nodes_and_values(graph, node, [node], new, node.outputs[:1], [result])
