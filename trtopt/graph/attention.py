"""Attention nodes (opset 23) written as the products that they are.

One exporter writes the same layer as an Attention node that another writes as MatMul, Softmax and MatMul. Only products
are quantized, every TensorRT knows them, and fuses them again.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtopt.graph.query import add_initializer, attribute, constant, dims, is_float, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir

_INPUTS = 4  # queries, keys, values and mask; then come the past and lengths
_KNOWN = frozenset(
    {"is_causal", "scale", "softcap", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode", "softmax_precision"}
)
"""Attributes of opset 23. A later one, such as the sizes of a window, changes what the node computes."""


def expand_attention(model: ir.Model) -> bool:
    """Replace the plain Attention nodes of the main graph, in place, and return whether there were.

    Plain is one of four axes, with as many heads for keys as for queries, without a past, a window or a cap. A causal
    mask is written as a constant, and so needs fixed lengths. A query for which a boolean mask allows no key has the
    result 0, as ONNX defines, where a Softmax alone would return NaN.
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
    if (
        extra
        or others
        or cap
        or node.attributes.keys() - _KNOWN
        or not all(is_float(operand) for operand in node.inputs[:3])
    ):
        return False
    if query is None or key is None or value is None or {len(query), len(key), len(value)} != {4} or query[3] is None:
        return False
    has_lengths = query[2] is not None and key[2] is not None
    return query[1] is not None and query[1] == key[1] and (has_lengths or not attribute(node, "is_causal", 0))


def _every_row_allows_a_key(mask: ir.Value | None, *, causal: bool) -> bool:
    """Return whether a boolean mask is a constant with an allowed key in every row."""
    known = constant(mask)
    return known is not None and not causal and bool(known.any(axis=-1).all())


def _expand(node: ir.Node, taken: set[str]) -> None:
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    graph = node.graph
    assert isinstance(graph, ir.Graph)
    new: list[ir.Node] = []

    def add(
        op: str, inputs: Sequence[ir.Value | None], *attributes: ir.Attr, dtype: ir.DataType | None = None
    ) -> ir.Value:
        name = unique(f"{node.name or 'Attention'}/{op}", taken)
        type = node.outputs[0].type if dtype is None else ir.TensorType(dtype)
        output = ir.Value(name=f"{name}_output", type=type)
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
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    allowed = mask if mask is not None and mask.dtype == ir.DataType.BOOL else None
    if mask is not None and allowed is None:
        scores = add("Add", [scores, mask])
    may_be_empty = allowed is not None
    if attribute(node, "is_causal", 0):
        causal = number("causal", np.tri(sizes[2] or 0, lengths[2] or 0, dtype=np.bool_))
        allowed = causal if allowed is None else add("And", [allowed, causal], dtype=ir.DataType.BOOL)
    if allowed is not None:
        scores = add("Where", [allowed, scores, number("masked", np.asarray(-np.inf, np.float32))])
    weights = add("Softmax", [scores], ir.AttrInt64("axis", -1))
    if may_be_empty and not _every_row_allows_a_key(mask, causal=bool(attribute(node, "is_causal", 0))):
        ones = add("Cast", [allowed], ir.AttrInt64("to", ir.DataType.FLOAT), dtype=ir.DataType.FLOAT)
        most = add("ReduceMax", [ones, number("axis", np.asarray([-1], np.int64))], dtype=ir.DataType.FLOAT)
        some = add("Cast", [most], ir.AttrInt64("to", ir.DataType.BOOL), dtype=ir.DataType.BOOL)
        weights = add("Where", [some, weights, number("nothing", np.asarray(0, np.float32))])
    result = add("MatMul", [weights, value])
    replace_nodes_and_values(graph, node, [node], new, node.outputs[:1], [result])
