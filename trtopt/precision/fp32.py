"""FP32: the graph as given.

Touches: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request
from trtopt.precision.graph import FLOAT_COMPUTE_FREE, float_nodes
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 13
NEEDS_TABLE = False


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:  # noqa: ARG001 - the shape of every precision
    """Leave every node as it is."""
    return tuple(
        Decision(node=node.name or "", op=node.op_type, precision="fp32", reason="asked for")
        for node in float_nodes(model.graph)
        if node.op_type not in FLOAT_COMPUTE_FREE
    )
