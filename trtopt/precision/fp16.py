"""FP16 (IEEE 754 binary16), by explicit casts; graph inputs and outputs keep their types.

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
    name="fp16",
    ir_name="FLOAT16",
    bits=16,
    mantissa=10,
    exponent=-14,
    max=65504.0,
    min=-65504.0,
    opset=19,
)


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Cast to FP16, in place, every node that supports it; the others stay in FP32 with a reason (see `keep`)."""
    from trtopt.precision.passes import half
    from trtopt.precision.passes.keep import keep

    return half.convert(model, FORMAT, keep(model, FORMAT, request), request.masks)
