"""FP8 (E4M3): Q/DQ pairs where `placement` says, one scale per tensor, other nodes in the fallback precision.

With 4 bits of exponent the relative precision is nearly the same over many magnitudes. Absmax is therefore often the
best amax, where INT8 would clip. A calibration table holds amax / 127, as for INT8; the scales in the graph are
amax / 448. GPUs of compute capability 8.9 and later support it.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request
from trtopt.precision.passes import eight_bits, qdq
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 19  # the first with float8e4m3fn
NEEDS_TABLE = True


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Quantize in place, activations and weights per tensor.

    Raises:
        TableError, UsageError: as `eight_bits.apply`.
    """
    return eight_bits.apply(model, request, qdq.FP8)
