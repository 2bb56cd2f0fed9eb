"""Queries about an ONNX graph, and the small edits, that several precision modules share.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

FLOAT_COMPUTE_FREE = frozenset(
    "Identity Reshape Transpose Squeeze Unsqueeze Flatten Slice Split Gather GatherElements GatherND Concat Expand "
    "Tile Pad DepthToSpace SpaceToDepth ReverseSequence Shape Size Cast CastLike Constant ConstantOfShape Dropout "
    "QuantizeLinear DequantizeLinear ScatterND ScatterElements Compress Trilu Where".split()
)
"""Operators that move or convert numbers without arithmetic: they add no rounding error, and get no decision."""

SAME_VALUES = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Identity MaxPool".split())
"""Operators that commute with quantization: input and output have the same scale (rule 5 of `placement`)."""


def float_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of the main graph, in order, that read or write float32 tensors."""
    for node in graph:
        if any(is_float(value) for value in [*node.inputs, *node.outputs]):
            yield node


def is_float(value: ir.Value | None) -> bool:
    """Return whether the value is a float32 tensor, and not a sequence or an optional of such."""
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return the array of an initializer; None for a value that is computed at run time."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return the shape of a tensor, with None for a dynamic dimension; None if the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def producer(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes the value; None for a graph input or an initializer."""
    return None if value is None else value.producer()


def consumers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read the value, each once, in the order of their uses."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute of a node, or `default` if it is not set."""
    value = node.attributes.get(name)
    return default if value is None else int(value.as_int())


def reduced_axes(node: ir.Node, rank: int) -> frozenset[int] | None:
    """Return the axes of a reduction of a tensor of that rank, counted from the front; None if they are not known."""
    if "axes" in node.attributes:  # before opset 18
        axes = tuple(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        if array is None:
            return None
        axes = tuple(array.tolist())
    else:
        axes = ()
    if not axes and not attribute(node, "noop_with_empty_axes", 0):
        axes = tuple(range(rank))
    return frozenset(int(axis) % rank for axis in axes)


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
    """Add an initializer to the graph and return its value. `name` must not be in use."""
    import onnx_ir as ir

    tensor = ir.Tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, name: str, taken: set[str]) -> ir.Value:
    """Insert a Cast of `value` to `dtype` and return its output, named `name`.

    The node is placed directly after the producer of `value`, or first in the graph if it has none. `name` must be
    unique; the name of the new node is added to `taken`.
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
    """Return the names of all nodes and tensors of the graph and its subgraphs."""
    taken: set[str] = set()
    for scope in (graph, *graph.subgraphs()):
        taken.update(value.name or "" for value in [*scope.inputs, *scope.initializers.values()])
    for node in graph.all_nodes():
        taken.add(node.name or "")
        taken.update(value.name or "" for value in node.outputs)
    return taken


def unique(name: str, taken: set[str]) -> str:
    """Return `name`, with a number appended if it is in `taken`, and add the result to `taken`."""
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove the initializers that no node reads and that are not graph outputs."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def has_types(graph: onnx.GraphProto, types: Collection[int]) -> bool:
    """Return whether an input, constant or cast of a graph or one of its subgraphs has one of these ONNX types."""
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    return (
        any(value.type.tensor_type.elem_type in types for value in graph.input)
        or any(tensor.data_type in types for tensor in graph.initializer)
        or any(attribute.t.data_type in types for attribute in attributes if attribute.HasField("t"))
        or any(attribute.i in types for attribute in attributes if attribute.name in ("to", "dtype", "output_dtype"))
        or any(has_types(attribute.g, types) for attribute in attributes if attribute.HasField("g"))
    )


def only_read_by(value: ir.Value, uses: Collection[tuple[ir.Node, int]]) -> bool:
    """Return whether nothing but these inputs of nodes reads a value, also through operators that only move values.

    A value that nothing reads, or that is an output of the network, is read by something else.
    """
    todo = [value]
    while todo:
        value = todo.pop()
        if value.is_graph_output() or not value.uses():
            return False
        for node, index in value.uses():
            if node.op_type in SAME_VALUES:
                todo.append(node.outputs[0])
            elif (node, index) not in uses:
                return False
    return True
