"""FP8 (E4M3): Q/DQ pairs where `placement` says, one scale per tensor, other nodes in the fallback precision.

With 4 bits of exponent the relative precision is nearly the same over many magnitudes. Absmax is therefore often the
best amax, where INT8 would clip. A calibration table holds amax / 127, as for INT8; the scales in the graph are
amax / 448. GPUs of compute capability 8.9 and later support it.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.formats import Format
from trtopt.precision import Request
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

FORMAT = Format(
    name="fp8",
    ir_name="FLOAT8E4M3FN",
    bits=8,
    mantissa=3,
    exponent=-6,
    max=448.0,
    min=-448.0,
    opset=19,  # the first with float8e4m3fn
)


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Quantize in place, activations and weights per tensor.

    Raises:
        TableError, UsageError: as `eight_bits.apply`.
    """
    from trtopt.precision.passes import eight_bits

    return eight_bits.apply(model, request, FORMAT)
