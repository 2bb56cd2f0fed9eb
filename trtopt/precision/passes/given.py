"""Decisions for a model that is quantized already: its Q/DQ nodes stay, and the rest gets the fallback precision.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from trtopt.graph.query import producer
from trtopt.precision import formats
from trtopt.precision.passes.half import REQUESTED
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

REASON = "quantized in the given model"
_PARTLY = "only one of its operands is quantized in the given model"
_NOT = "not quantized in the given model"

_INTEGER = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BEFORE_DQ = frozenset({"Cast", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def is_quantized(graph: ir.Graph) -> bool:
    """Return whether the graph contains Q/DQ nodes."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph)


def apply(model: ir.Model, fall_back: Callable[[], tuple[Decision, ...]]) -> tuple[Decision, ...]:
    """Cast the rest of the model with `fall_back`, in place, and return its decisions.

    A weighted operator is in an 8-bit precision if both of its operands come from DQ of that type.
    """
    names = {format.ir_name: name for name, format in formats(8).items()}
    quantized: dict[str, str] = {}
    partly: set[str] = set()
    for node in model.graph:
        types = {_code_type(value) for value in node.inputs[:2]} if node.op_type in _INTEGER else {""}
        if types == {""}:
            continue
        if len(types) == 1 and (name := names.get(types.pop())):
            quantized[node.name or ""] = name
        else:
            partly.add(node.name or "")

    def decided(decision: Decision) -> Decision:
        if decision.node in quantized:
            return replace(decision, precision=quantized[decision.node], reason=REASON)
        if decision.reason != REQUESTED:
            return decision
        return replace(decision, reason=_PARTLY if decision.node in partly else _NOT)

    return tuple(map(decided, fall_back()))


def _code_type(value: ir.Value | None) -> str:
    """Return the ONNX type that DQ reads to make a value, also before a node that only moves or casts it; or empty."""
    node = producer(value)
    while node is not None and node.op_type in _BEFORE_DQ:
        node = producer(node.inputs[0])
    codes = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None
    return codes.dtype.name if codes is not None and codes.dtype is not None else ""
