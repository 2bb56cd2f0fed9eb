"""BF16: bfloat16 by explicit casts, inputs and outputs kept as they are. It has FP32's range and 8 bits of precision.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request, half
from trtopt.precision.keep import keep
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 22  # the first in which Conv and the pools take bfloat16
NEEDS_TABLE = False


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Cast every node that can stand it to BF16; the others stay in FP32, with the reason."""
    return half.convert(model, half.BF16, keep(model, half.BF16, request.ranges, request.sizes))
