"""FP8: E4M3 Q/DQ pairs where `placement` says, one scale a tensor, the rest in 16 bits (or FP32).

The type has 4 bits of exponent, and keeps its relative precision over many ranges: the largest magnitude often serves
best where INT8 would clip. Tables hold amax / 127, as for INT8; the scales are amax / 448. GPUs of compute capability
8.9 and later compute in it.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request, eight_bits, qdq
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 19  # the first with float8e4m3fn
NEEDS_TABLE = True


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Quantize in place: activations and weights per tensor. Raises as `eight_bits.apply`."""
    return eight_bits.apply(model, request, qdq.FP8)
