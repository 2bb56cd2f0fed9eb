"""Masks: numbers that mean infinity, such as -1e9 or -3.4e38, which a 16-bit type cannot represent.

Before a Softmax any very negative number has the same effect, so `half` clamps them. In an output of the network they
must be what they are in FP32: the nodes that carry them there stay in FP32.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from trtopt.graph.query import FLOAT_COMPUTE_FREE, constant, is_float

if TYPE_CHECKING:
    import onnx_ir as ir

MASK = 1e9
"""Magnitude from which on a number means infinity."""

# Operators whose result may be such a number because an input is.
_CARRIERS = FLOAT_COMPUTE_FREE | frozenset(
    "Add Sub Mul Div Neg Abs Relu Min Max Clip Sum CumSum TopK LogSoftmax ReduceMax ReduceMin ReduceSum MaxPool "
    "GlobalMaxPool".split()
)
# Operators that only compare their input with the constant, which is a bound, or divide by it.
_BOUNDED = frozenset({"Clip", "Min", "Max", "Div"})


def extreme(value: ir.Value | None) -> float:
    """Return the number of a constant that means infinity; 0 if there is none."""
    array = constant(value)
    if array is None or not is_float(value):
        return 0.0
    finite = array[np.isfinite(array)]
    if not finite.size:
        return 0.0
    number = float(finite[np.abs(finite).argmax()])
    return number if abs(number) >= MASK else 0.0


def carriers_to_outputs(graph: ir.Graph, masks: Collection[str]) -> set[ir.Node]:
    """Return the nodes through which a mask reaches an output of the graph.

    Args:
        graph: the main graph.
        masks: the names of the tensors that were observed to hold masks. Constants are found without.
    """
    carrying: set[ir.Value] = {value for value in graph.inputs if value.name in masks}
    nodes = []
    for node in graph:
        # An operator may also write a mask itself, as a causal Attention does.
        is_source = _fills_with_mask(node) or any(value.name in masks for value in node.outputs)
        if node.op_type not in _CARRIERS and not is_source:
            continue
        reads_constant = node.op_type not in _BOUNDED and any(extreme(value) for value in node.inputs)
        if is_source or reads_constant or any(value in carrying for value in node.inputs):
            nodes.append(node)
            carrying.update(value for value in node.outputs if is_float(value))
    leading: set[ir.Node] = set()
    for node in reversed(nodes):
        if any(value.is_graph_output() or leading.intersection(value.consumers()) for value in node.outputs):
            leading.add(node)
    return leading


def _fills_with_mask(node: ir.Node) -> bool:
    """Return whether the node fills a tensor with a number that means infinity."""
    if node.op_type != "ConstantOfShape" or "value" not in node.attributes:
        return False
    value = float(node.attributes["value"].as_tensor().numpy().reshape(-1)[0])
    return bool(np.isfinite(value)) and abs(value) >= MASK
