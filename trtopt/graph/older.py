"""A prepared or typed graph in an older opset, for a parser that does not read the newer one.

Preparation raises the opset for the types of scales. An older TensorRT reads FP32 graphs of opset 17, so what changed
since is written the old way here, and what has no older form is refused.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtopt.errors import ModelError
from trtopt.graph.query import add_initializer, constant, dims, drop_unused_initializers, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir

_REDUCTIONS = frozenset(f"Reduce{name}" for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod SumSquare".split())
"""Operators whose axes became an input in opset 18. Those of ReduceSum did in 13."""
_NO_EFFECT = {"saturate": 1, "antialias": 0, "ceil_mode": 0, "allowzero": 0, "noop_with_empty_axes": 0, "block_size": 0}
_AXES_MOVED = 18


def lower_opset(model: ir.Model, opset: int) -> None:
    """Rewrite the model, in place, to at most this opset.

    Raises:
        ModelError: a node has no form in that opset.
    """
    if model.opset_imports.get("", 0) <= opset:
        return
    taken = names(model.graph)
    for node in list(model.graph.all_nodes()):
        if node.domain in ("", "ai.onnx"):
            _rewrite(node, opset, taken)
            _check(node, opset)
    model.opset_imports[""] = opset
    for function in (model.graph, *model.graph.subgraphs()):
        function.opset_imports[""] = opset
    drop_unused_initializers(model.graph)


def _rewrite(node: ir.Node, opset: int, taken: set[str]) -> None:
    import onnx_ir as ir

    if opset < _AXES_MOVED and node.op_type in _REDUCTIONS and len(node.inputs) > 1:
        axes = constant(node.inputs[1])
        if axes is not None:
            node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)])
            _drop_input(node, 1)
        elif node.inputs[1] is None:
            _drop_input(node, 1)
    if opset < _AXES_MOVED and node.op_type == "Split":
        node.attributes.pop("num_outputs", None)
        _state_split(node, taken)
    if opset < _AXES_MOVED and node.op_type == "Pad" and len(node.inputs) > 3:
        _pad_all_axes(node, taken)
    for name, default in _NO_EFFECT.items():
        if name in node.attributes and node.attributes[name].as_int() == default:
            node.attributes.pop(name)
    dilations = node.attributes.get("dilations")
    if node.op_type == "AveragePool" and dilations is not None and set(dilations.as_ints()) == {1}:
        node.attributes.pop("dilations")


def _drop_input(node: ir.Node, index: int) -> None:
    node.replace_input_with(index, None)
    node.resize_inputs(index)


def _state_split(node: ir.Node, taken: set[str]) -> None:
    """Write the sizes of the parts of a Split, which opset 13 to 17 requires if they differ."""
    import onnx_ir as ir

    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    sizes = [(dims(value) or ())[axis] if dims(value) else None for value in node.outputs]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return
    if all(size is not None for size in sizes) and isinstance(node.graph, ir.Graph):
        name = unique(f"{node.name}/split", taken)
        parts = add_initializer(node.graph, name, np.array(sizes, np.int64), ir.DataType.INT64)
        node.resize_inputs(2)
        node.replace_input_with(1, parts)


def _pad_all_axes(node: ir.Node, taken: set[str]) -> None:
    """Write the amounts of a Pad for all axes, not for those that its fourth input names."""
    import onnx_ir as ir

    pads, axes, shape = constant(node.inputs[1]), constant(node.inputs[3]), dims(node.inputs[0])
    if pads is None or axes is None or shape is None or not isinstance(node.graph, ir.Graph):
        return
    rank, count = len(shape), len(axes.reshape(-1))
    full = np.zeros(2 * rank, np.int64)
    for i, axis in enumerate(axes.reshape(-1).tolist()):
        full[axis % rank], full[rank + axis % rank] = pads[i], pads[count + i]
    name = unique(f"{node.name}/pads", taken)
    node.replace_input_with(1, add_initializer(node.graph, name, full, ir.DataType.INT64))
    _drop_input(node, 3)


def _check(node: ir.Node, opset: int) -> None:
    """Raise a ModelError if a node has attributes or inputs that its operator did not have in that opset."""
    import onnx

    fix = "Choose a later target, or export the model at an older opset"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        what = f"{node.op_type} node {node.name} has no form in opset {opset}"
        raise ModelError(what, why="the operator came later", fix=fix) from error
    unknown = [name for name in node.attributes if name not in schema.attributes]
    if unknown or len(node.inputs) > schema.max_input or len(node.outputs) > schema.max_output:
        why = f"{unknown[0]} came later" if unknown else "it had fewer inputs or outputs"
        raise ModelError(f"{node.op_type} node {node.name} has no form in opset {opset}", why=why, fix=fix)
