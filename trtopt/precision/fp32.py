"""FP32: the graph as it is.

Touches: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.graph.query import FLOAT_COMPUTE_FREE, float_nodes
from trtopt.precision import Request
from trtopt.precision.passes.half import REQUESTED
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 13
NEEDS_TABLE = False


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:  # noqa: ARG001 - the interface of a precision
    """Return a decision for each node that does arithmetic; the model stays as it is."""
    return tuple(
        Decision(node=node.name or "", op=node.op_type, precision="fp32", reason=REQUESTED)
        for node in float_nodes(model.graph)
        if node.op_type not in FLOAT_COMPUTE_FREE
    )
