"""BF16, by explicit casts; graph inputs and outputs keep their types. It has FP32's range and 8 significant bits.

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
    name="bf16",
    ir_name="BFLOAT16",
    bits=16,
    mantissa=7,
    exponent=-126,
    max=3.3895313892515355e38,
    min=-3.3895313892515355e38,
    opset=22,  # the first in which Conv and the pools support bfloat16
)


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Cast to BF16, in place, every node that supports it; the others stay in FP32 with a reason (see `keep`)."""
    from trtopt.precision.passes import half
    from trtopt.precision.passes.keep import keep

    return half.convert(model, FORMAT, keep(model, FORMAT, request), request.masks)
