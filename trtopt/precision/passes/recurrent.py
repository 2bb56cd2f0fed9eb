"""Recurrent operators that TensorRT's parser takes in FP32 only.

It computes some of their operands in FP32 and others in the type of the node, and TensorRT does not mix types. (Seen
with TensorRT for RTX 1.7.)

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.formats import Format

if TYPE_CHECKING:
    import onnx_ir as ir

_LENGTHS = 4
"""Index of the input sequence_lens."""


def refusal(node: ir.Node, half: Format) -> str:
    """Return why TensorRT's parser refuses the node in a 16-bit type; empty if it does not."""
    if node.op_type not in ("LSTM", "GRU", "RNN"):
        return ""
    if len(node.inputs) > _LENGTHS and node.inputs[_LENGTHS] is not None:
        return "TensorRT's parser refuses sequence_lens in 16 bits"
    return "TensorRT's parser refuses a GRU in BF16" if node.op_type == "GRU" and half.name == "bf16" else ""
