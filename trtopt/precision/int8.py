"""INT8: Q/DQ pairs where `placement` says, the rest in 16 bits (or FP32).

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request, eight_bits, qdq
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 19  # the first whose DequantizeLinear takes FP16 scales
NEEDS_TABLE = True


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Quantize in place: activations per tensor, weights per output channel. Raises as `eight_bits.apply`."""
    return eight_bits.apply(model, request, qdq.INT8)
