"""Operands of the weighted operators: which inputs are quantized, and along which axis their channels lie.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trtopt.graph.query import attribute, constant, dims

if TYPE_CHECKING:
    import onnx_ir as ir


def weighted_inputs(node: ir.Node) -> tuple[tuple[int, int | None], ...]:
    """Return (index, channel axis) of each input of a weighted operator to quantize (rules 1 and 2).

    The axis is that of the output channels for a weight, and None for an activation. Other nodes have no such inputs.
    """
    if node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "Conv":  # weight [outputs, inputs / groups, ...]
        return ((0, None), (1, 0))
    if node.op_type == "ConvTranspose":  # weight [inputs, outputs / groups, ...]
        return ((0, None), (1, 1))
    if node.op_type not in ("Gemm", "MatMul") or constant(node.inputs[0]) is not None:
        return ()
    weight = constant(node.inputs[1])
    if weight is None:  # a product of two activations
        return ((0, None), (1, None))
    if node.op_type == "Gemm":
        return ((0, None), (1, 0 if attribute(node, "transB", 0) else 1))
    return ((0, None), (1, weight.ndim - 1))


def channel_axis(node: ir.Node) -> int | None:
    """Return the axis on which a weighted operator reads the channels of its input; None if it has no such axis.

    It is 1 for convolutions, and -1, the last, for products with a constant matrix. The axis belongs to the operator,
    not to the tensor: a convolution and a matrix product may read the same one.
    """
    if not weighted_inputs(node) or constant(node.inputs[1]) is None:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    is_matrix = len(dims(node.inputs[1]) or ()) == 2
    return -1 if is_matrix and not attribute(node, "transA", 0) else None


def channel_axes(nodes: Iterable[ir.Node]) -> set[tuple[str, int]]:
    """Return (tensor, channel axis) for the input of every weighted operator that has such an axis."""
    axes = {(node, channel_axis(node)) for node in nodes}
    return {(node.inputs[0].name or "", axis) for node, axis in axes if axis is not None and node.inputs[0] is not None}
