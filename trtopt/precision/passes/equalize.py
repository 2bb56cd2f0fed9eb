"""Equalization: the channels of an activation are scaled to similar ranges before the activation is quantized.

An activation has one INT8 scale. If the ranges of its channels differ, 2 and 100 say, the smaller channel uses two or
three of the 255 levels. Dividing channel c by a smoothing scale s[c] at its producer, and multiplying the weights that
read it by s[c], leaves the FP32 results unchanged (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; Xiao et al. 2023, "SmoothQuant", for measured activation ranges). The
smoothing scales are those with the least predicted error (`precision.passes.smoothing`).

The division is free where existing constants absorb it: the weights and bias of a Conv, Gemm or MatMul, the factor of a
Mul or Div, the scale and bias of a norm. It passes through Relu, pools, the Add of a constant, one side of a product,
and operators that only move values (`trtopt.graph.views`). A GELU, hard-swish or hard-sigmoid of one node gets a Mul
behind it, in place of the factor that its form in parts has.

Elsewhere a Mul is inserted after the producer, if the predicted error falls to half or less (`WORTH`), and if the
producer is an operator that TensorRT does not fuse into an INT8 kernel (`pairs`: a norm, a sigmoid, a square root).
The pointwise kernel of such an operator should take in one more multiplication at little cost; no engine was timed.

A tensor whose values change is renamed (`EQUALIZED`): a calibration table belongs to one of the two networks only.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.ranges import Channels
from trtopt.formats import INT8, Format
from trtopt.graph.query import (
    add_initializer,
    attribute,
    constant,
    drop_unused_initializers,
    names,
    unique,
)
from trtopt.precision.passes.pairs import Link
from trtopt.precision.passes.smoothing import choose
from trtopt.types import EQUALIZED

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.float64]
WORTH = 0.5
"""A Mul that replaces no factor is inserted only if it reduces the predicted squared error to this fraction."""


def equalize(
    model: ir.Model,
    pairs: list[Link],
    channels: Mapping[str, Channels],
    alphas: Sequence[float],
    format: Format = INT8,
) -> tuple[list[str], list[str]]:
    """Equalize the activations of the given pairs in place, where the predicted error becomes smaller.

    Args:
        model: an FP32 model.
        pairs: some of its `links`.
        channels: the observed values of each activation, by tensor name.
        alphas: the migration strengths to choose from (see `smoothing.WAYS`).
        format: the 8-bit type that the activations will be quantized to.

    Returns:
        The names of the activations equalized at no cost, and of those equalized with an inserted Mul.
    """
    taken = names(model.graph)
    absorbed: list[str] = []
    inserted: list[str] = []
    for link in pairs:
        weights = [np.asarray(constant(node.inputs[1]), np.float64) for node in link.consumers]
        weighted = list(zip(link.consumers, weights, strict=True))
        grouped = [_grouped(node, weight).astype(np.float32) for node, weight in weighted]
        choice = choose(channels[link.name], grouped, alphas, format)
        if choice is None or (not link.absorbers and choice.error > WORTH):
            continue
        for node, weight in weighted:
            _replace_constant(node, 1, _scale_input_channels(node, weight, choice.scales), taken)
        # `_absorb` renames the tensor, so its name is recorded before.
        if link.absorbers:
            is_free = all(index is not None for _, index, _ in link.absorbers)
            (absorbed if is_free else inserted).append(link.name)
            _absorb(link, choice.scales, taken)
        else:
            inserted.append(link.name)
            _insert(link, choice.scales, taken)
    drop_unused_initializers(model.graph)
    return absorbed, inserted


def _absorb(link: Link, scales: Array, taken: set[str]) -> None:
    """Divide the absorbers' constants by the smoothing scales, in place, and rename the tensors that change."""
    for node, index, axis in link.absorbers:
        if index is None:
            value = node.outputs[0]
            uses = list(value.uses())
            result = _multiplied(value, axis, 1 / scales, taken)
            for consumer, position in uses:
                consumer.replace_input_with(position, result)
            continue
        array = np.asarray(constant(node.inputs[index]), np.float64)
        factors = scales if node.op_type == "Div" else 1 / scales
        _replace_constant(node, index, _scale_output_channels(node, index, array, factors, axis), taken)
    for value in (*link.values, *link.views):
        value.name = f"{value.name}{EQUALIZED}"


def _insert(link: Link, scales: Array, taken: set[str]) -> None:
    """Insert a Mul by 1 / `scales` after the activation, for its weighted consumers only."""
    result = _multiplied(link.tensor, link.axis, 1 / scales, taken)
    for node, index in link.uses:
        node.replace_input_with(index, result)
    for view in link.views:
        view.name = f"{view.name}{EQUALIZED}"


def _multiplied(value: ir.Value, axis: int, factors: Array, taken: set[str]) -> ir.Value:
    """Return the output of a new Mul of a value by one factor per channel on `axis`. Nothing reads it yet."""
    import onnx_ir as ir

    source, graph = value.producer(), value.graph
    assert source is not None
    assert isinstance(graph, ir.Graph)
    shape = [-1 if i == axis else 1 for i in range(len(value.shape or ()))]
    array = np.asarray(factors, np.float32).reshape(shape)
    factor_value = add_initializer(graph, unique(f"{value.name}/factors", taken), array, ir.DataType.FLOAT)
    result = ir.Value(name=unique(f"{value.name}{EQUALIZED}", taken), type=value.type, shape=value.shape)
    name = unique(f"{value.name}{EQUALIZED}/Mul", taken)
    graph.insert_after(source, ir.node("Mul", [value, factor_value], outputs=[result], name=name))
    return result


def _grouped(node: ir.Node, weight: Array) -> Array:
    """Return the weight as [groups, outputs / groups, channels / groups, taps]."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        return weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    return np.moveaxis(weight, _input_axis(node, weight), -1)[None, :, :, None]


def _input_axis(node: ir.Node, weight: Array) -> int:
    """Return the axis of the input channels in the weight of a Gemm or MatMul."""
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight.ndim - 2


def _scale_input_channels(node: ir.Node, weight: Array, factors: Array) -> Array:
    """Return the weight of a consumer with its part for input channel c multiplied by factors[c]."""
    if node.op_type == "Conv":
        # A grouped convolution reads channel c in one of its groups only.
        grouped = _grouped(node, weight)
        return np.asarray((grouped * factors.reshape(len(grouped), 1, -1, 1)).reshape(weight.shape))
    shape = [-1 if i == _input_axis(node, weight) else 1 for i in range(weight.ndim)]
    return weight * factors.reshape(shape)


def _scale_output_channels(node: ir.Node, index: int, array: Array, factors: Array, axis: int) -> Array:
    """Return a constant of an absorber with its part for output channel c multiplied by factors[c]."""
    if node.op_type not in ("Add", "Div", "Mul"):
        # Output channels are first in the weight and bias of a Conv, and in a transposed Gemm's weight; else last.
        is_first = node.op_type == "Conv" or (node.op_type == "Gemm" and index == 1 and attribute(node, "transB", 0))
        channel_axis = 0 if is_first else array.ndim - 1
        shape = [-1 if i == channel_axis else 1 for i in range(array.ndim)]
        return array * factors.reshape(shape or [-1])  # a scalar bias becomes one number per channel
    # A scalar becomes one factor per channel.
    rank = len(node.outputs[0].shape or ())
    return np.asarray(array * factors.reshape([-1 if i == axis else 1 for i in range(rank)]))


def _replace_constant(node: ir.Node, index: int, array: Array, taken: set[str]) -> None:
    """Replace a constant input by a new initializer, named after the old one: another node may read that."""
    import onnx_ir as ir

    old = node.inputs[index]
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    name = unique(f"{old.name}{EQUALIZED}", taken)
    new = add_initializer(node.graph, name, np.asarray(array, np.float32), ir.DataType.FLOAT)
    node.replace_input_with(index, new)
