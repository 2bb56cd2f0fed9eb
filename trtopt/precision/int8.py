"""INT8: Q/DQ pairs where `placement` says, other nodes in the fallback precision.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt import formats
from trtopt.precision import Request
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

FORMAT = formats.INT8


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Quantize in place, activations per tensor and weights per output channel.

    Raises:
        TableError, UsageError: as `eight_bits.apply`.
    """
    from trtopt.precision.passes import eight_bits

    return eight_bits.apply(model, request, FORMAT)
