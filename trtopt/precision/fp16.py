"""FP16: IEEE half precision by explicit casts, inputs and outputs kept as they are.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request, half
from trtopt.precision.keep import keep
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 19
NEEDS_TABLE = False


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Cast every node that can stand it to FP16; the others stay in FP32, with the reason."""
    return half.convert(model, half.FP16, keep(model, half.FP16, request.ranges, request.sizes))
