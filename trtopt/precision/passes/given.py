"""Decisions for a model that is quantized already: its Q/DQ nodes stay, and the rest gets the fallback precision.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from trtopt.graph.query import producer
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

REASON = "quantized in the given model"

_INTEGER = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BEFORE_DQ = frozenset({"Cast", "Transpose", "Reshape"})


def is_quantized(graph: ir.Graph) -> bool:
    """Return whether the graph contains Q/DQ nodes."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph)


def apply(model: ir.Model, name: str, fall_back: Callable[[], tuple[Decision, ...]]) -> tuple[Decision, ...]:
    """Cast the rest of the model with `fall_back`, in place, and return its decisions.

    A weighted operator is in the 8-bit type `name` if both of its operands come from DQ.
    """
    quantized = {
        node.name or ""
        for node in model.graph
        if node.op_type in _INTEGER and all(_is_dequantized(value) for value in node.inputs[:2])
    }
    return tuple(
        replace(decision, precision=name, reason=REASON) if decision.node in quantized else decision
        for decision in fall_back()
    )


def _is_dequantized(value: ir.Value | None) -> bool:
    """Return whether a value comes from DQ, also through a node that only moves or casts it."""
    node = producer(value)
    while node is not None and node.op_type in _BEFORE_DQ:
        node = producer(node.inputs[0])
    return node is not None and node.op_type == "DequantizeLinear"
