"""One form for the ways to limit a tensor: Relu, Clip, Max and Min with a constant, and chains of them.

A Relu6 is written as Clip(0, 6), as Clip after Relu, or as Min after Max. It becomes one Clip, and a limit at zero
alone becomes a Relu: TensorRT fuses those, and the passes of `precision` know them.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trtopt.graph.query import add_initializer, constant, dims, drop_unused_initializers, is_float, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir

_LIMITING = frozenset({"Relu", "Clip", "Max", "Min"})
_RELU = (0.0, math.inf)
Limits = tuple["ir.Value", float, float]
"""The tensor that is limited, with the lower and the upper limit, which may be infinite."""


def merge_limits(model: ir.Model) -> None:
    """Replace every chain of limits in the main graph by one Relu or one Clip, in place.

    Constants must be initializers. Before opset 11, in which the limits of a Clip became inputs, nothing is changed.
    """
    from onnx_ir.convenience import replace_nodes_and_values

    if model.opset_imports.get("", 0) < 11:
        return
    taken = names(model.graph)
    for node in list(model.graph):
        limits = _limits(node)
        if limits is None:
            continue
        value, low, high = limits
        removed = [node]
        while (before := value.producer()) is not None and _is_only_read_here(value):
            inner = _limits(before)
            if inner is None:
                break
            removed.insert(0, before)
            value, low, high = inner[0], min(max(inner[1], low), high), min(max(inner[2], low), high)
        if len(removed) == 1 and node.op_type == ("Relu" if (low, high) == _RELU else "Clip"):
            continue
        new = _limited(model.graph, node, (value, low, high), taken)
        replace_nodes_and_values(model.graph, node, removed, [new], node.outputs, new.outputs)
    drop_unused_initializers(model.graph)


def _is_only_read_here(value: ir.Value) -> bool:
    return len(list(value.uses())) == 1 and not value.is_graph_output()


def _limits(node: ir.Node) -> Limits | None:
    """Return the limits that a node sets; None if it does anything else, or to anything but a float32 tensor."""
    if node.op_type not in _LIMITING or node.domain not in ("", "ai.onnx") or not is_float(node.outputs[0]):
        return None
    value = node.inputs[0]
    if node.op_type == "Relu":
        return (value, 0.0, math.inf) if value is not None else None
    if node.op_type == "Clip":
        low, high = (_scalar(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
        given = [operand for operand in node.inputs[1:] if operand is not None]
        if value is None or len(given) != sum(limit is not None for limit in (low, high)):  # computed at run time
            return None
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        return (value, low, high) if low <= high else None
    limits = [_scalar(operand) for operand in node.inputs]
    if len(limits) != 2 or (limits[0] is None) == (limits[1] is None):
        return None
    index = 0 if limits[0] is None else 1
    value, limit = node.inputs[index], limits[1 - index]
    if value is None or limit is None or len(dims(value) or ()) != len(dims(node.outputs[0]) or ()):
        return None
    return (value, limit, math.inf) if node.op_type == "Max" else (value, -math.inf, limit)


def _scalar(value: ir.Value | None) -> float | None:
    """Return the number in a constant of one element that is not NaN; None for anything else."""
    array = constant(value)
    if array is None or array.size != 1 or np.isnan(number := float(array.reshape(-1)[0])):
        return None
    return number


def _limited(graph: ir.Graph, node: ir.Node, limits: Limits, taken: set[str]) -> ir.Node:
    """Return a Relu or a Clip with these limits, named after `node`. Its output has the type of the node's."""
    import onnx_ir as ir

    value, low, high = limits
    inputs: list[ir.Value | None] = [value]
    if (low, high) != _RELU:
        for name, limit in (("min", low), ("max", high)):
            array = np.asarray(limit, np.float32)
            is_set = math.isfinite(limit)
            inputs.append(
                add_initializer(graph, unique(f"{node.name or node.op_type}/{name}", taken), array, ir.DataType.FLOAT)
                if is_set
                else None
            )
    output = ir.Value(name=node.outputs[0].name, type=node.outputs[0].type, shape=node.outputs[0].shape)
    return ir.node("Relu" if len(inputs) == 1 else "Clip", inputs, outputs=[output], name=node.name)
