"""Sums written as Adds: a residual block may end in either, and only an Add is recognized as its end.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.graph.query import names, unique

if TYPE_CHECKING:
    import onnx_ir as ir


def expand_sums(model: ir.Model) -> bool:
    """Replace every Sum of several tensors in the main graph by Adds, in place, and return whether there were any."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    taken = names(model.graph)
    sums = [node for node in model.graph if node.op_type == "Sum" and node.domain in ("", "ai.onnx")]
    sums = [node for node in sums if len(node.inputs) > 1]
    for node in sums:
        total, new = node.inputs[0], list[ir.Node]()
        for addend in node.inputs[1:]:
            name = unique(f"{node.name or 'Sum'}/Add", taken)
            output = ir.Value(name=f"{name}_output", type=node.outputs[0].type)
            new.append(ir.Node("", "Add", [total, addend], outputs=[output], name=name))
            total = output
        replace_nodes_and_values(model.graph, node, [node], new, node.outputs, [new[-1].outputs[0]])
    return bool(sums)
