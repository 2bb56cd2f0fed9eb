"""BF16, by explicit casts; graph inputs and outputs keep their types. It has FP32's range and 8 significant bits.

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

OPSET = 22  # the first in which Conv and the pools support bfloat16
NEEDS_TABLE = False


def apply(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    """Cast to BF16, in place, every node that supports it; the others stay in FP32 with a reason (see `keep`)."""
    return half.convert(model, half.BF16, keep(model, half.BF16, request))
