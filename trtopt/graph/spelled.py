"""Operators that a parser lacks, written as the operators that they consist of.

The numbers stay the same: a LayerNormalization is written out as its definition says, a Shape of some dimensions is cut
from that of all, and a Range over the size of an input's dimension from a constant of the largest size in the profile.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.graph.query import add_initializer, attribute, constant, dims, names, producer, unique
from trtopt.types import ShapeRange

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.generic]
GELU, LAYER_NORM, RANGE, SHAPE = "Gelu", "LayerNormalization", "Range", "Shape"
_AXES_MOVED = 18
"""Opset in which the axes of ReduceMean became an input."""
_VIEWS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that leave a single integer as it is."""


def spell_out(model: ir.Model, operators: Collection[str], profile: Sequence[ShapeRange]) -> None:
    """Write out the nodes of these operators, in place, where that is exact.

    The last node of what a node becomes keeps its name, and the others have names that begin with it. A Range is
    written out if it counts to the size of an input's dimension that `profile` bounds.

    Args:
        model: the model, with shapes inferred.
        operators: some of `GELU`, `LAYER_NORM`, `RANGE` and `SHAPE`; the last one with `start` or `end` only.
        profile: the shape ranges of the inputs.
    """
    taken = names(model.graph)
    for node in list(model.graph):
        if node.op_type == LAYER_NORM and LAYER_NORM in operators:
            _layer_norm(model, node, taken)
        elif node.op_type == RANGE and RANGE in operators:
            _range(node, profile, taken)
        elif node.op_type == GELU and GELU in operators:
            _gelu(node, taken)
    for node in list(model.graph) if SHAPE in operators else ():  # after `_range`, which reads them
        if node.op_type == SHAPE and {"start", "end"} & {*node.attributes}:
            _shape(node, taken)


def _shape(node: ir.Node, taken: set[str]) -> None:
    parts, last = _Parts(node, taken), np.iinfo(np.int64).max
    whole = parts.put("Shape", node.inputs[0])
    bounds = (attribute(node, "start", 0), attribute(node, "end", last))
    start, end = (
        parts.constant(label, np.array([bound], np.int64))
        for label, bound in zip(("start", "end"), bounds, strict=True)
    )
    parts.replace(parts.put("Slice", whole, start, end))


def _gelu(node: ir.Node, taken: set[str]) -> None:
    """Write x (1 + erf(x / sqrt 2)) / 2, or its approximation x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    x = node.inputs[0]
    if x is None or x.dtype is None:
        return
    parts, dtype = _Parts(node, taken), x.dtype.numpy()

    def scaled(value: ir.Value, label: str, factor: float) -> ir.Value:
        return parts.put("Mul", value, parts.constant(label, np.array(factor, dtype)))

    if "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh":
        cube = parts.put("Mul", parts.put("Mul", x, x), x)
        inner = scaled(parts.put("Add", x, scaled(cube, "cubic", 0.044715)), "sqrt_2_pi", float(np.sqrt(2 / np.pi)))
        curve = parts.put("Tanh", inner)
    else:
        curve = parts.put("Erf", scaled(x, "sqrt_half", float(np.sqrt(0.5))))
    one = parts.put("Add", curve, parts.constant("one", np.array(1, dtype)))
    parts.replace(parts.put("Mul", scaled(x, "half", 0.5), one))


def _layer_norm(model: ir.Model, node: ir.Node, taken: set[str]) -> None:
    x, scale = (*node.inputs, None, None)[:2]
    if x is None or x.type is None or any(out.uses() for out in node.outputs[1:]):
        return
    first, shape = attribute(node, "axis", -1), dims(x)
    if first >= 0:
        if shape is None:  # the axes to the end are not known
            return
        first -= len(shape)
    parts = _Parts(node, taken)
    axes = list(range(first, 0))
    number = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    epsilon = parts.constant("epsilon", np.array(number, x.type.dtype.numpy()))
    mean = parts.mean(x, axes, model.opset_imports[""])
    centered = parts.put("Sub", x, mean)
    variance = parts.mean(parts.put("Mul", centered, centered), axes, model.opset_imports[""])
    result = parts.put("Div", centered, parts.put("Sqrt", parts.put("Add", variance, epsilon)))
    result = parts.put("Mul", result, scale)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = parts.put("Add", result, node.inputs[2])
    parts.replace(result)


def _range(node: ir.Node, profile: Sequence[ShapeRange], taken: set[str]) -> None:
    start, limit, delta = node.inputs
    first, step = constant(start), constant(delta)
    largest = _largest(limit, profile)
    if largest is None or first is None or step is None or first != 0 or step != 1 or first.dtype.kind != "i":
        return
    parts = _Parts(node, taken)
    every = parts.constant("all", np.arange(largest, dtype=first.dtype))
    flat = parts.constant("flat", np.array([1], np.int64))
    end = parts.put("Reshape", limit, flat)
    parts.replace(parts.put("Slice", every, parts.constant("start", np.array([0], first.dtype)), end))


def _largest(value: ir.Value | None, profile: Sequence[ShapeRange]) -> int | None:
    """Return the largest size of the dimension that an integer is; None if it is something else, or unbounded."""
    node = producer(value)
    while node is not None and node.op_type in _VIEWS:
        node = producer(node.inputs[0])
    if node is None:
        return None
    shape: ir.Node | None = node
    picked = attribute(node, "start", 0), attribute(node, "end", 0)
    if node.op_type == "Gather":
        index = constant(node.inputs[1])
        shape, picked = producer(node.inputs[0]), _one(index, index)
    elif node.op_type == "Slice":
        shape, picked = producer(node.inputs[0]), _one(constant(node.inputs[1]), constant(node.inputs[2]), stop=0)
    start, end = picked
    if shape is None or shape.op_type != "Shape" or end - start != 1 or shape.inputs[0] is None:
        return None
    name = shape.inputs[0].name
    entry = next((each for each in profile if each.name == name), None)
    return entry.max[start] if entry is not None and -len(entry.max) <= start < len(entry.max) else None


def _one(start: Array | None, end: Array | None, stop: int = 1) -> tuple[int, int]:
    """Return a range of axes given by two constants of one element; an empty one if they are not."""
    if start is None or end is None or start.size != 1 or end.size != 1:
        return 0, 0
    return int(start.reshape(-1)[0]), int(end.reshape(-1)[0]) + stop


class _Parts:
    """The nodes in place of one node, in order."""

    def __init__(self, node: ir.Node, taken: set[str]) -> None:
        self._node, self._taken = node, taken
        self._name = node.name or node.op_type
        self._added: list[ir.Node] = []

    def put(self, op: str, *inputs: ir.Value | None, attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        """Add a node, and return its output."""
        import onnx_ir as ir

        out = ir.Value(name=unique(f"{self._name}/{op}", self._taken), type=self._node.outputs[0].type)
        name = unique(f"{self._name}/{op}/node", self._taken)
        self._added.append(ir.Node("", op, inputs, attributes, outputs=[out], name=name))
        return out

    def mean(self, x: ir.Value, axes: list[int], opset: int) -> ir.Value:
        """Add a ReduceMean that keeps the reduced axes."""
        import onnx_ir as ir

        if opset < _AXES_MOVED:
            return self.put("ReduceMean", x, attributes=[ir.AttrInt64s("axes", axes)])
        return self.put("ReduceMean", x, self.constant("axes", np.array(axes, np.int64)))

    def constant(self, label: str, array: Array) -> ir.Value:
        """Add a constant."""
        import onnx_ir as ir

        graph = self._node.graph
        assert isinstance(graph, ir.Graph)
        name = unique(f"{self._name}/{label}", self._taken)
        return add_initializer(graph, name, array, ir.DataType.from_numpy(array.dtype))

    def replace(self, result: ir.Value) -> None:
        """Put a computed value in place of the node's first output, and remove the node."""
        node, old, last = self._node, self._node.outputs[0], result.producer()
        assert node.graph is not None
        assert last is not None
        node.graph.insert_before(node, self._added)
        result.shape = old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        name, node_name = old.name, node.name
        node.graph.remove(node, safe=True)
        result.name, last.name = name, node_name
