"""The usual nodes that a 16-bit type spoils, recognized in the graph: used where no samples tell (see `blocks`).

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.graph.query import producer
from trtopt.precision.passes.blocks import grown

if TYPE_CHECKING:
    import onnx_ir as ir

_DEPTH = 8
_AVERAGES = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})


def spoiled(model: ir.Model) -> dict[str, str]:
    """Return the nodes to keep in FP32, by name, each with the reason."""
    reasons: dict[str, str] = {}
    for node in model.graph:
        if node.op_type in ("Sin", "Cos"):
            reason, depth = "the sine and cosine of large angles need FP32", _DEPTH
        elif _is_variance(node):
            reason, depth = "a variance as a difference of averages needs FP32", 2
        else:
            continue
        block = grown(model, node.name or "", depth)
        for name in block.nodes if block is not None else ():
            reasons.setdefault(name, reason)
    return reasons


def _is_variance(node: ir.Node) -> bool:
    """Return whether a node computes E[x * x] - E[x] * E[x]."""
    if node.op_type != "Sub":
        return False
    of_squares, squared = (producer(value) for value in node.inputs)
    if of_squares is None or squared is None or of_squares.op_type not in _AVERAGES:
        return False
    square = producer(of_squares.inputs[0])
    mean = producer(squared.inputs[0])
    return _is_square(square) and _is_square(squared) and mean is not None and mean.op_type in _AVERAGES


def _is_square(node: ir.Node | None) -> bool:
    """Return whether a node computes a square."""
    return node is not None and (node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1]))
