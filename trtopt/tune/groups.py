"""The groups of nodes that are quantized together, and what quantizing each of them saves.

Weighted operators that read the same tensor share its Q/DQ pair, such as the projections to query, key and value: if
one of them stayed in higher precision, the tensor would be needed in both. Residual Adds and average pools are groups
of their own: they save memory traffic only.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtopt.graph.query import attribute, constant, dims
from trtopt.precision.passes.operands import weighted_inputs
from trtopt.precision.passes.placement import Placement
from trtopt.tune.search import Group

if TYPE_CHECKING:
    import onnx_ir as ir

_PER_ELEMENT = 300
"""Multiplications that an element of traffic counts as. In INT8 it takes one byte less than in FP16. An H100 moves 3.35
TB/s, and does 495 T multiplications per second in FP16 and 990 T in INT8 (NVIDIA's data sheet, dense): a byte takes as
long as INT8 saves on 300 multiplications."""


def groups(placement: Placement, sizes: Mapping[str, int]) -> tuple[Group, ...]:
    """Return the groups of the quantized nodes, in graph order.

    Args:
        placement: the sites to quantize.
        sizes: number of elements by tensor, for one sample. Tensors without an entry count by their static shape, in
            which a dynamic dimension counts as 1.
    """
    members: dict[str, list[ir.Node]] = {}
    for site in placement.sites:
        if site.index == 0 or not weighted_inputs(site.node):
            key = site.scale_from if weighted_inputs(site.node) else site.node.name or ""
            nodes = members.setdefault(key, [])
            if site.node not in nodes:
                nodes.append(site.node)
    return tuple(
        Group(
            name=nodes[0].name or "",
            nodes=tuple(node.name or "" for node in nodes),
            saving=sum(_saving(node, sizes) for node in nodes),
        )
        for nodes in members.values()
    )


def _saving(node: ir.Node, sizes: Mapping[str, int]) -> float:
    traffic = float(sum(_size(value, sizes) for value in [*node.inputs, *node.outputs] if value is not None))
    return macs(node, sizes) + traffic * _PER_ELEMENT


def macs(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Return the multiplications of a weighted operator for one sample; 0 for another operator."""
    if not weighted_inputs(node):
        return 0.0
    weight = constant(node.inputs[1])
    if node.op_type in ("Conv", "ConvTranspose"):
        # Each output element (each input element of a transposed convolution) meets one slice of the weight.
        value = node.outputs[0] if node.op_type == "Conv" else node.inputs[0]
        return _size(value, sizes) * math.prod(size or 1 for size in (dims(node.inputs[1]) or ())[1:])
    left = dims(node.inputs[0])
    inner = weight.shape[1 if attribute(node, "transB", 0) else -2] if weight is not None and weight.ndim > 1 else None
    if inner is None:
        inner = (left[-1] if left else None) or 1
    return _size(node.outputs[0], sizes) * float(inner)


def _size(value: ir.Value | None, sizes: Mapping[str, int]) -> int:
    if value is None:
        return 0
    known = sizes.get(value.name or "")
    return known if known else math.prod(size or 1 for size in dims(value) or ())
