"""Rule 8 for depthwise convolutions: they are quantized only if a quantization follows them.

TensorRT 8.5.3.1 on an H200 has INT8 kernels for a depthwise convolution with nothing, a Relu, a Clip or a SiLU between
it and the next QuantizeLinear. With a hard-swish, a LeakyRelu or a scalar factor there, or with a reader in 16 bits, it
computed the convolution in FP32 or FP16, between layers that only convert. With an Add of 16 bits, the build failed
("incorrectly marked as an int8 node"), as it did for a text detector with hard-swishes. Dense convolutions had INT8
kernels with a hard-swish and with factors. Users report such failures of 8.5.2 and 8.6, too (NVIDIA/TensorRT issues
3385 and 4060); later versions have not been run.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from trtopt.graph.query import attribute, dims, only_read_by

if TYPE_CHECKING:
    import onnx_ir as ir

_ACTIVATIONS = frozenset({"Relu", "Clip"})


def is_depthwise(node: ir.Node) -> bool:
    """Return whether a node is a depthwise convolution, of any multiplier of the channels."""
    weight = dims(node.inputs[1]) if node.op_type == "Conv" else None
    return weight is not None and weight[1] == 1 and attribute(node, "group", 1) > 1


def behind(node: ir.Node) -> list[ir.Value]:
    """Return the tensors that the kernel of a depthwise convolution can write: before and after an activation."""
    output = node.outputs[0]
    activated = _activated(output)
    return [output] if activated is None else [output, activated]


def no_kernel(node: ir.Node, quantized: Collection[tuple[ir.Node, int]]) -> str:
    """Return why a quantized operator has no INT8 kernel with what follows it; empty if it has one.

    Args:
        node: a quantized operator.
        quantized: (node, index of the input) of the inputs that are quantized.
    """
    written = behind(node) if is_depthwise(node) else []
    if not written or any(only_read_by(value, quantized) for value in written):
        return ""
    last = written[-1]
    readers = {reader.op_type: None for reader, index in last.uses() if (reader, index) not in quantized}
    if last.is_graph_output():
        readers["an output of the network"] = None
    return f"a depthwise convolution that is followed by {' and '.join(readers)}, not by a quantization"


def _activated(value: ir.Value) -> ir.Value | None:
    """Return the output of the activation that alone reads a tensor, of those that fuse with the convolution."""
    readers = sorted((node for node, _ in value.uses()), key=lambda node: node.op_type)
    if value.is_graph_output():
        return None
    if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS:
        return readers[0].outputs[0]
    if [node.op_type for node in readers] != ["Mul", "Sigmoid"]:
        return None
    product, sigmoid = readers
    is_silu = only_read_by(sigmoid.outputs[0], [(product, 1 - product.inputs.index(value))])
    return product.outputs[0] if is_silu else None
