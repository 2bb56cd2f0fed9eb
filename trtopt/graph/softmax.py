"""One form for a Softmax along the last axis, which opset 12 and older read as one of a matrix.

onnx's version converter writes such a Softmax as Flatten, Softmax and Reshape. Between them TensorRT does not recognize
attention, and the networks of one model differ.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.graph.query import attribute, dims, drop_unused_initializers, producer

if TYPE_CHECKING:
    import onnx_ir as ir

_ALONG_AN_AXIS = 13
"""The opset from which on the axis of a Softmax is one axis, not the first of several."""


def unflatten_softmax(model: ir.Model) -> None:
    """Remove the Flatten or Reshape before, and the Reshape after, each Softmax of the last axis, in place.

    The shapes must show that the last axis stays the same and that the Reshape restores the others.
    """
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    if model.opset_imports.get("", 0) < _ALONG_AN_AXIS:
        return
    for node in list(model.graph):
        before, after = _around(node)
        if before is None or after is None:
            continue
        given, result = before.inputs[0], after.outputs[0]
        output = ir.Value(name=result.name, type=result.type, shape=given.shape if given is not None else None)
        new = ir.node(node.op_type, [given], {"axis": -1}, outputs=[output], name=node.name)
        removed = [node, after]
        if len(list(before.outputs[0].uses())) == 1 and not before.outputs[0].is_graph_output():
            removed.insert(0, before)
        replace_nodes_and_values(model.graph, after, removed, [new], [result], [output])
    drop_unused_initializers(model.graph)


def _around(node: ir.Node) -> tuple[ir.Node | None, ir.Node | None]:
    """Return the nodes around a Softmax of a matrix that only change the shape and change it back; None if not so."""
    if node.op_type not in ("Softmax", "LogSoftmax") or node.domain not in ("", "ai.onnx"):
        return None, None
    before, uses = producer(node.inputs[0]), list(node.outputs[0].uses())
    if before is None or before.op_type not in ("Flatten", "Reshape") or node.outputs[0].is_graph_output():
        return None, None
    matrix, given = dims(node.inputs[0]) or (), dims(before.inputs[0]) or ()
    if not given or given[-1] is None or matrix[-1:] != given[-1:]:
        return None, None
    if attribute(node, "axis", -1) not in (-1, len(matrix) - 1) or len(uses) != 1 or uses[0].idx != 0:
        return None, None
    after = uses[0].node
    # All sizes but one are known: then the other is the same, too.
    if after.op_type != "Reshape" or dims(after.outputs[0]) != given or given.count(None) > 1:
        return None, None
    return before, after
