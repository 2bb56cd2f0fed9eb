"""FP32: the graph as it is.

Touches: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.formats import Format
from trtopt.precision import Request
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

FORMAT = Format(
    name="fp32",
    ir_name="FLOAT",
    bits=32,
    mantissa=23,
    exponent=-126,
    max=3.4028234663852886e38,
    min=-3.4028234663852886e38,
    opset=13,
)


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:  # noqa: ARG001 - the interface of a precision
    """Return a decision for each node that does arithmetic; the model stays as it is."""
    from trtopt.graph.query import FLOAT_COMPUTE_FREE, float_nodes
    from trtopt.precision.passes import bodies
    from trtopt.precision.passes.half import REQUESTED

    return tuple(
        Decision(node=node.name or "", op=node.op_type, precision="fp32", reason=REQUESTED)
        for node in float_nodes(model.graph)
        if node.op_type not in FLOAT_COMPUTE_FREE
    ) + bodies.decisions(model.graph)
