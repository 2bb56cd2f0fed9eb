"""Questions about an ONNX graph that several precision modules ask, and the few edits that they share.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT_COMPUTE_FREE = frozenset(
    "Identity Reshape Transpose Squeeze Unsqueeze Flatten Slice Split Gather GatherElements GatherND Concat Expand "
    "Tile Pad DepthToSpace SpaceToDepth ReverseSequence Shape Size Cast CastLike Constant ConstantOfShape Dropout "
    "QuantizeLinear DequantizeLinear ScatterND ScatterElements Compress Trilu Where".split()
)
"""Operators that move or retype numbers without arithmetic: their results need no rounding and are not counted."""

SAME_VALUES = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Identity MaxPool".split())
"""Operators through which a quantization scale passes unchanged in both directions (rule 5)."""


def float_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes of the main graph, in order, that read or write float32 tensors."""
    for node in graph:
        if any(is_float(value) for value in [*node.inputs, *node.outputs]):
            yield node


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is a float32 tensor."""
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The value of an initializer, or None for anything computed at run time."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape of a tensor, with None for a dynamic dimension; None when even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def producer(value: ir.Value | None) -> ir.Node | None:
    """The node that computes the value; None for inputs and initializers."""
    return None if value is None else value.producer()


def consumers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read the value, once each, in graph order of their uses."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node."""
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
    """Add a constant of that type to the graph under a name that is free, and return it."""
    import onnx_ir as ir

    tensor = ir.Tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, name: str, taken: set[str]) -> ir.Value:
    """Cast `value` to that type right behind its producer, or at the head of the graph, and return the result.

    `name` must be free or its own; the name of the new node is added to `taken`.
    """
    import onnx_ir as ir

    result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    node = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[result], name=unique(f"{name}/Cast", taken))
    source = value.producer()
    if source is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(source, node)
    return result


def names(graph: ir.Graph) -> set[str]:
    """Names of all nodes and tensors, those of inner graphs included."""
    found = {
        value.name or ""
        for each in (graph, *graph.subgraphs())
        for value in [*each.inputs, *each.initializers.values()]
    }
    for node in graph.all_nodes():
        found.add(node.name or "")
        found.update(value.name or "" for value in node.outputs)
    return found


def unique(name: str, taken: set[str]) -> str:
    """`name`, or `name` with the first number that makes it free; what is returned counts as taken from then on."""
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove constants that nothing reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
