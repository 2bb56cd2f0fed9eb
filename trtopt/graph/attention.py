"""Attention nodes (opset 23) written as the products that they are.

One exporter writes the same layer as an Attention node that another writes as MatMul, Softmax and MatMul. Only products
are quantized, every TensorRT knows them, and fuses them again.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    Plain is one without a past, a window or a cap, of four axes or of three, in which the heads are side by side. A
    causal mask is written as a constant, and so needs fixed lengths. A query for which a boolean mask allows no key has
    the result 0, as ONNX defines, where a Softmax alone would return NaN.
    """
    taken = names(model.graph)
    plain = [node for node in model.graph if node.op_type == "Attention" and node.domain in ("", "ai.onnx")]
    plain = [node for node in plain if _is_plain(node)]
    for node in plain:
        _expand(node, taken)
    return bool(plain)


@dataclass(frozen=True, slots=True)
class _Heads:
    """The sizes of queries, keys or values; the length is None if it is dynamic."""

    count: int
    length: int | None
    size: int


def _heads(node: ir.Node, index: int) -> _Heads | None:
    """Return the sizes of the queries (index 0), keys or values; None unless all but the length is known."""
    shape = dims(node.inputs[index])
    if shape is None or len(shape) not in (3, 4):
        return None
    count, length, size = shape[1:] if len(shape) == 4 else (None, *shape[1:])
    if len(shape) == 3:
        count = attribute(node, "kv_num_heads" if index else "q_num_heads", 0)
        size = size // count if size is not None and count else None
    return _Heads(count, length, size) if count and size else None


def _all_heads(node: ir.Node) -> tuple[_Heads, _Heads, _Heads] | None:
    """Return the sizes of queries, keys and values; None if any is not known."""
    query, key, value = (_heads(node, index) for index in range(3))
    return None if query is None or key is None or value is None else (query, key, value)


def _is_plain(node: ir.Node) -> bool:
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
    found = _all_heads(node)
    if found is None:
        return False
    query, key, value = found
    if query.count % key.count or key.count != value.count:
        return False
    has_lengths = query.length is not None and key.length is not None
    return has_lengths or not attribute(node, "is_causal", 0)


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

    found = _all_heads(node)
    assert found is not None
    queries, keys, _ = found

    def split(value: ir.Value | None, heads: _Heads) -> ir.Value:
        """Return queries, keys or values with an axis for the heads, as many as the queries have."""
        assert value is not None
        if len(dims(value) or ()) == 3:
            value = add("Reshape", [value, number("split", np.asarray([0, 0, heads.count, heads.size]))])
            value = add("Transpose", [value], ir.AttrInt64s("perm", [0, 2, 1, 3]))
        if heads.count != queries.count:
            each = np.asarray([1, 1, queries.count // heads.count, 1, 1])
            value = add("Unsqueeze", [value, number("axis", np.asarray([2]))])
            value = add("Expand", [value, number("repeats", each)])
            value = add("Reshape", [value, number("joined", np.asarray([0, queries.count, -1, heads.size]))])
        return value

    query, key, value = map(split, node.inputs[:3], found)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else queries.size**-0.5
    transposed = add("Transpose", [key], ir.AttrInt64s("perm", [0, 1, 3, 2]))
    scores = add("Mul", [add("MatMul", [query, transposed]), number("scale", np.asarray(scale, np.float32))])
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    allowed = mask if mask is not None and mask.dtype == ir.DataType.BOOL else None
    if mask is not None and allowed is None:
        scores = add("Add", [scores, mask])
    may_be_empty = allowed is not None
    if attribute(node, "is_causal", 0):
        causal = number("causal", np.tri(queries.length or 0, keys.length or 0, dtype=np.bool_))
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
    if len(dims(node.inputs[0]) or ()) == 3:
        result = add("Transpose", [result], ir.AttrInt64s("perm", [0, 2, 1, 3]))
        result = add("Reshape", [result, number("joined", np.asarray([0, 0, -1]))])
    replace_nodes_and_values(graph, node, [node], new, node.outputs[:1], [result])
