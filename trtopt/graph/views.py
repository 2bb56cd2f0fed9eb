"""Channel axes through operators that only move values: one linear layer is written in many ways.

A product of matrices with more than two axes may be written as Reshape, Gemm and Reshape, and one over the channels of
an image as Transpose, MatMul and Transpose. The channels of a tensor are then on another axis, but the same.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtopt.graph.query import dims

if TYPE_CHECKING:
    import onnx_ir as ir

_REGROUPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
MOVES = _REGROUPING | {"Identity", "Dropout", "Transpose"}
"""Operators whose output holds the values of their first input, perhaps in another order or shape."""


def after(node: ir.Node, axis: int) -> int | None:
    """Return the axis of the node's output on which the channels of its first input are; None if they are not kept.

    Args:
        node: any node.
        axis: the axis of the channels in its first input, counted from the front.
    """
    if node.op_type in ("Identity", "Dropout"):
        return axis
    if node.op_type == "Transpose":
        order = _order(node)
        return order.index(axis) if order else None
    return _regrouped(node.inputs[0], node.outputs[0], axis) if node.op_type in _REGROUPING else None


def before(node: ir.Node, axis: int) -> int | None:
    """Return the axis of the node's first input on which the channels of its output are; None if they are not kept."""
    if node.op_type in ("Identity", "Dropout"):
        return axis
    if node.op_type == "Transpose":
        order = _order(node)
        return order[axis] if order else None
    return _regrouped(node.outputs[0], node.inputs[0], axis) if node.op_type in _REGROUPING else None


def _order(node: ir.Node) -> tuple[int, ...]:
    """Return the permutation of a Transpose; empty if the rank is unknown."""
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    return tuple(reversed(range(len(dims(node.inputs[0]) or ()))))


def _regrouped(value: ir.Value | None, other: ir.Value | None, axis: int) -> int | None:
    """Return the axis of `other` that has the same channels as `axis` of `value`, which holds the same values in order.

    It has as many channels, and as many values for each. A single channel, or a size that is not known, has no match.
    """
    ours, theirs = dims(value), dims(other)
    if ours is None or theirs is None or None in ours[axis:] or ours[axis] == 1:
        return None
    inner = math.prod(dim or 0 for dim in ours[axis + 1 :])
    for i in reversed(range(len(theirs))):
        if None in theirs[i:]:
            return None
        if theirs[i] == ours[axis] and math.prod(dim or 0 for dim in theirs[i + 1 :]) == inner:
            return i
    return None
