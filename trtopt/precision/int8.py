"""INT8: Q/DQ pairs where `placement` says, other nodes in the fallback precision.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request
from trtopt.precision.passes import eight_bits, qdq
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 19  # the first in which DequantizeLinear supports FP16 scales
NEEDS_TABLE = True


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Quantize in place, activations per tensor and weights per output channel.

    Raises:
        TableError, UsageError: as `eight_bits.apply`.
    """
    return eight_bits.apply(model, request, qdq.INT8)
