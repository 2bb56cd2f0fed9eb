"""The nodes that gain nothing from INT8, by their shapes: small products, and the first convolution for images.

Touches: nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtopt.graph.query import attribute, constant, dims, producer
from trtopt.precision.passes.operands import weighted_inputs
from trtopt.wording import counted

if TYPE_CHECKING:
    import onnx_ir as ir

MIN_CHANNELS = 8
"""Channels of a convolution.

INT8 tensor-core tiles are 32 wide, so that narrow convolutions are mostly padding. But one in FP16 between others in
INT8 needs copies around it, and TensorRT chooses FP32 for it. (TensorRT 8.5.3.1 on an H200, a MobileNetV2 of width 0.35
at batch 64: 0.479 ms and 26.0 dB with its convolutions of 8 channels in FP16, 0.290 ms and 23.7 dB with them in INT8;
no other version and network was tried.)
"""

MIN_SIZE = 16
"""Inner and outer dimension of a product."""

MIN_STEM_CHANNELS = 32  # output channels of the first convolution of an image network
MAX_IMAGE_CHANNELS = 4  # gray, RGB, and RGB with alpha or depth


def no_int8_gain(node: ir.Node) -> str:
    """Return why INT8 would not make a weighted operator faster (rule 8); empty if it would."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = constant(node.inputs[1])
        if weight is None:
            return "its weight is not constant"
        groups = attribute(node, "group", 1)
        channels = [weight.shape[0], weight.shape[1] * groups]
        if is_stem(node, weight.shape):
            return ""
        if min(channels) < MIN_CHANNELS:
            count = min(channels)
            return f"{counted(count, 'channel')}: fewer than {MIN_CHANNELS}"
    if node.op_type in ("Gemm", "MatMul"):
        if constant(node.inputs[0]) is not None:
            return "its left operand is constant"
        m, k, n = _product_sizes(node)
        if m == 1 or n == 1:
            return "a matrix-vector product: bound by memory, not arithmetic"
        for name, size in (("inner", k), ("outer", n)):
            if size is not None and size < MIN_SIZE:
                return f"{name} dimension {size}: less than {MIN_SIZE}"
    return ""


def is_stem(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Return whether a Conv with a weight of this shape is the first of a network for images of up to 4 channels.

    TensorRT has INT8 kernels for such inputs, and then fuses the Conv with what follows. (TensorRT 8.5.3.1 on an H100:
    it took a ResNet-50 at batch 32 from 0.975 to 0.853 ms.) They were seen to pay with 32 and 64 output channels. With
    the 16 of a text detector, the SQNR of the output falls by 2 dB, and half of INT8's 32 channels are padding.
    """
    if node.op_type != "Conv" or len(shape) != 4 or attribute(node, "group", 1) != 1:
        return False
    if shape[0] < MIN_STEM_CHANNELS or shape[1] > MAX_IMAGE_CHANNELS:
        return False
    todo, visited = [node.inputs[0]], set()
    while todo:  # no weighted operator before it
        source = producer(todo.pop())
        if source is None or source in visited:
            continue
        if weighted_inputs(source):
            return False
        visited.add(source)
        todo.extend(source.inputs)
    return True


def _product_sizes(node: ir.Node) -> tuple[int | None, int | None, int | None]:
    """Return M, K and N of a matrix product [M, K] x [K, N]; None where a size is dynamic or unknown."""
    left, right = dims(node.inputs[0]), dims(node.inputs[1])
    if not left or not right:
        return None, None, None
    if len(left) < 2 or len(right) < 2:  # a vector on one side: its missing dimension is 1
        return (1 if len(left) < 2 else None), left[-1], (1 if len(right) < 2 else None)
    if attribute(node, "transA", 0):
        left = left[::-1]
    if attribute(node, "transB", 0):
        right = right[::-1]
    inner = left[-1] if left[-1] is not None else right[-2]
    # One matrix multiplies the rows of all matrices on the left: they are rows of one product.
    rows = left[:-1] if len(right) == 2 else left[-2:-1]
    return (None if None in rows else math.prod(row or 0 for row in rows)), inner, right[-1]
