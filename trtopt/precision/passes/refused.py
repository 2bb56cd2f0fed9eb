"""Operators that TensorRT takes in FP32 only, although ONNX allows the 16-bit type.

The table was measured with TensorRT for RTX 1.7; no other TensorRT was asked.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.formats import Format

if TYPE_CHECKING:
    import onnx_ir as ir

_REFUSED = {
    "fp16": frozenset({"Celu"}),
    "bf16": frozenset({"Celu", "ConvTranspose", "GRU", "HardSwish", "LpNormalization", "LpPool", "Mish"}),
}
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_LENGTHS = 4
"""Index of the input sequence_lens."""


def refusal(node: ir.Node, half: Format) -> str:
    """Return why TensorRT refuses the node in a 16-bit type; empty if it does not."""
    if node.op_type == "TensorScatter":
        return "TensorRT needs its cache as an input of the network, without a cast"
    # The parser computes some operands in FP32 and others in the type of the node, and TensorRT does not mix types.
    if node.op_type in _RECURRENT and len(node.inputs) > _LENGTHS and node.inputs[_LENGTHS] is not None:
        return "TensorRT's parser refuses sequence_lens in 16 bits"
    if node.op_type in _REFUSED.get(half.name, ()):
        return f"TensorRT for RTX 1.7 does not support {node.op_type} in {half.name.upper()}"
    return ""
