"""FP16 (IEEE 754 binary16), by explicit casts; graph inputs and outputs keep their types.

Touches: the model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.precision import Request
from trtopt.precision.passes import half
from trtopt.precision.passes.keep import keep
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 19
NEEDS_TABLE = False


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Cast to FP16, in place, every node that supports it; the others stay in FP32 with a reason (see `keep`)."""
    return half.convert(model, half.FP16, keep(model, half.FP16, request))
