"""Equalization: the channels of an activation are scaled to similar ranges before the activation is quantized.

An activation has one INT8 scale. If the ranges of its channels differ, 2 and 100 say, the smaller channel uses two or
three of the 255 levels. Dividing channel c by a smoothing scale s[c] at its producer, and multiplying the weights that
read it by s[c], leaves the FP32 results unchanged (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; Xiao et al. 2023, "SmoothQuant", for measured activation ranges). The
smoothing scales are those with the least predicted error (`precision.passes.smoothing`).

The division is free where existing constants absorb it: the weights and bias of a Conv, Gemm or MatMul, the factor of a
Mul or Div, the scale and bias of a LayerNormalization. It passes through Relu, pools, and the Add of a constant.

Elsewhere a Mul is inserted after the producer, if the predicted error falls to half or less (`WORTH`), and if the
producer is an operator that TensorRT does not fuse into an INT8 kernel (`_POINTWISE`: a norm, a GELU, a hard-swish).
The pointwise kernel of such an operator takes in one more multiplication at little cost.

A tensor whose values change is renamed (`SUFFIX`): a calibration table belongs to one of the two networks only.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.ranges import Channels
from trtopt.graph.query import (
    add_initializer,
    attribute,
    constant,
    dims,
    drop_unused_initializers,
    is_float,
    names,
    unique,
)
from trtopt.precision.passes.placement import Placement, place
from trtopt.precision.passes.smoothing import choose

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.float64]
SUFFIX = "/equalized"
WORTH = 0.5
"""A Mul is inserted only if it reduces the predicted squared error to this fraction, or less."""

# Operators f with f(x / s) = f(x) / s for every channel and s > 0.
_PASS_THROUGH = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"})
# Operators that TensorRT runs in pointwise or normalization kernels, not fused into INT8 convolutions and products.
_POINTWISE = frozenset(
    "Abs Div Elu Erf Exp Gelu HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Log Mul Pow "
    "Sigmoid Softplus Sqrt Tanh".split()
)


@dataclass(frozen=True, slots=True)
class Link:
    """An equalization pair: an activation that can be divided, and the consumers whose weights are multiplied.

    Attributes:
        consumers: the weighted operators that read the activation.
        tensor: the activation.
        axis: its channel axis, counted from the front.
        absorbers: (node, index of a constant input) that absorb the division. If empty, a Mul must be inserted.
        values: the tensors whose values change: the activation and those between it and the absorbers.
    """

    consumers: tuple[ir.Node, ...]
    tensor: ir.Value
    axis: int
    absorbers: tuple[tuple[ir.Node, int], ...] = ()
    values: tuple[ir.Value, ...] = ()

    @property
    def name(self) -> str:
        """The name of the activation."""
        return self.tensor.name or ""


def links(model: ir.Model) -> list[Link]:
    """Return every equalization pair of a prepared FP32 model, in graph order.

    Raises:
        ModelError: the model is quantized already.
    """
    placement = place(model)
    # The weighted operators that read each activation. Products of two activations have no weight, and thus no axis.
    consumers: dict[ir.Value, list[ir.Node]] = {}
    for site in placement.sites:
        value = site.node.inputs[0]
        if site.axis is not None and site.node.op_type != "ConvTranspose" and value is not None:
            consumers.setdefault(value, []).append(site.node)
    activations = [value for node in model.graph for value in node.outputs if value in consumers]
    candidates = [_link(value, consumers[value], placement) for value in activations]
    return [link for link in candidates if link is not None]


def _link(value: ir.Value, consumers: list[ir.Node], placement: Placement) -> Link | None:
    """Return the equalization pair of an activation and its weighted consumers; None if it cannot be equalized."""
    if value.shape is None or not is_float(value):
        return None
    rank = len(value.shape)
    # All consumers must read the channels on the same axis, with weights that have one factor per channel.
    axes = {1 if node.op_type == "Conv" else rank - 1 for node in consumers}
    has_plain_weights = all(node.op_type == "Conv" or len(dims(node.inputs[1]) or ()) == 2 for node in consumers)
    is_transposed = any(node.op_type == "Gemm" and attribute(node, "transA", 0) for node in consumers)
    if len(axes) > 1 or not has_plain_weights or is_transposed:
        return None
    axis = axes.pop()
    # The tensor itself may change only if nothing else reads it: other consumers would read the divided values.
    if all(node in consumers and index == 0 for node, index in value.uses()):
        absorbers, values = _absorbers(value, axis)
        if absorbers:
            return Link(tuple(consumers), value, axis, tuple(absorbers), tuple(values))
    source = value.producer()
    if source is None or not (source.op_type in _POINTWISE or _adds_constant(source, axis, rank)):
        return None
    # Other consumers keep the tensor before the Mul. If one of them quantizes it too, there would be two INT8 tensors.
    others = {site.scale_from for site in placement.sites if site.node not in consumers}
    return None if value.name in others else Link(tuple(consumers), value, axis)


def _adds_constant(node: ir.Node, axis: int, rank: int) -> bool:
    """Return whether the node adds a constant per channel: the end of a norm in separate operators, or a bias."""
    constants = [i for i, value in enumerate(node.inputs) if constant(value) is not None]
    return node.op_type == "Add" and len(constants) == 1 and _is_per_channel(node, constants[0], axis, rank)


def _absorbers(value: ir.Value, axis: int) -> tuple[list[tuple[ir.Node, int]], list[ir.Value]]:
    """Walk back from an activation to the constants that absorb its division.

    Returns:
        The absorbers and the tensors whose values change, as in `Link`; both are empty if an operator on the way can
        neither absorb the division nor pass it on.
    """
    absorbers: list[tuple[ir.Node, int]] = []
    values: list[ir.Value] = []
    rank, channels = len(dims(value) or ()), (dims(value) or (None,))[axis]
    while True:
        node = value.producer()
        # The consumers of the activation itself are all compensated. A tensor before it must have no other consumer.
        is_shared = bool(values) and len(list(value.uses())) != 1
        values.append(value)
        if node is None or value.is_graph_output() or is_shared or not is_float(value):
            return [], []
        # An operand that is broadcast has other channels.
        shape = dims(value)
        if shape is None or len(shape) != rank or channels is None or shape[axis] != channels:
            return [], []
        constants = [i for i, operand in enumerate(node.inputs) if constant(operand) is not None]
        # f(x) / s = f(x / s): go on with the operator's input.
        if node.op_type in _PASS_THROUGH:
            value = node.inputs[0]  # type: ignore[assignment]
        # (x + c) / s = x / s + c / s: the constant takes its part, and the division goes on with x.
        elif node.op_type == "Add" and len(constants) == 1 and _is_per_channel(node, constants[0], axis, rank):
            absorbers.append((node, constants[0]))
            value = node.inputs[1 - constants[0]]  # type: ignore[assignment]
        # (x c) / s = x (c / s), and (x / c) / s = x / (c s): the end of the walk.
        elif (node.op_type == "Mul" and len(constants) == 1) or (node.op_type == "Div" and constants == [1]):
            if not _is_per_channel(node, constants[0], axis, rank):
                return [], []
            return [*absorbers, (node, constants[0])], values
        # (W x + b) / s: the weight, and the bias, which must be a constant as well. So are scale and bias of a norm.
        elif node.op_type in ("Conv", "Gemm", "MatMul", "LayerNormalization") and constants[:1] == [1]:
            has_computed_bias = len(node.inputs) > 2 and node.inputs[2] is not None and 2 not in constants
            # The output of a product with a vector has no channels.
            is_vector = node.op_type == "MatMul" and len(dims(node.inputs[1]) or ()) < 2
            if has_computed_bias or is_vector or axis != _output_channel_axis(node, rank):
                return [], []
            return [*absorbers, *((node, i) for i in constants)], values
        else:
            return [], []


def _is_per_channel(node: ir.Node, index: int, axis: int, rank: int) -> bool:
    """Return whether a constant input is a scalar or has one value per channel, after broadcasting to `rank`."""
    array = constant(node.inputs[index])
    assert array is not None
    sizes = [1] * (rank - array.ndim) + list(array.shape)
    return len(sizes) == rank and all(size == 1 for i, size in enumerate(sizes) if i != axis)


def _output_channel_axis(node: ir.Node, rank: int) -> int:
    """Return the axis of the output channels of a weighted operator or norm, in an output of that rank."""
    return 1 if node.op_type == "Conv" else rank - 1


def equalize(
    model: ir.Model, pairs: list[Link], channels: Mapping[str, Channels], alphas: Sequence[float]
) -> tuple[list[str], list[str]]:
    """Equalize the activations of the given pairs in place, where the predicted error becomes smaller.

    Args:
        model: an FP32 model.
        pairs: some of its `links`.
        channels: the observed values of each activation, by tensor name.
        alphas: the migration strengths to choose from (see `divisors.WAYS`).

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
        choice = choose(channels[link.name], grouped, alphas)
        if choice is None or (not link.absorbers and choice.error > WORTH):
            continue
        for node, weight in weighted:
            _replace_constant(node, 1, _scale_input_channels(node, weight, choice.scales), taken)
        # `_absorb` renames the tensor, so its name is recorded before.
        if link.absorbers:
            absorbed.append(link.name)
            _absorb(link, choice.scales, taken)
        else:
            inserted.append(link.name)
            _insert(link, choice.scales, taken)
    drop_unused_initializers(model.graph)
    return absorbed, inserted


def _absorb(link: Link, scales: Array, taken: set[str]) -> None:
    """Divide the absorbers' constants by the smoothing scales, in place, and rename the tensors that change."""
    for node, index in link.absorbers:
        array = np.asarray(constant(node.inputs[index]), np.float64)
        factors = scales if node.op_type == "Div" else 1 / scales
        _replace_constant(node, index, _scale_output_channels(node, index, array, factors, link.axis), taken)
    for value in link.values:
        value.name = f"{value.name}{SUFFIX}"


def _insert(link: Link, scales: Array, taken: set[str]) -> None:
    """Insert a Mul by 1 / `scales` after the activation, for its weighted consumers only."""
    import onnx_ir as ir

    value, graph = link.tensor, link.tensor.graph
    source = value.producer()
    assert source is not None
    assert isinstance(graph, ir.Graph)
    shape = [-1 if i == link.axis else 1 for i in range(len(value.shape or ()))]
    factors = np.asarray(1 / scales, np.float32).reshape(shape)
    factor_value = add_initializer(graph, unique(f"{value.name}/factors", taken), factors, ir.DataType.FLOAT)
    result = ir.Value(name=unique(f"{value.name}{SUFFIX}", taken), type=value.type, shape=value.shape)
    name = unique(f"{value.name}{SUFFIX}/Mul", taken)
    graph.insert_after(source, ir.node("Mul", [value, factor_value], outputs=[result], name=name))
    for node in link.consumers:
        node.replace_input_with(0, result)


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
    if node.op_type in ("Conv", "Gemm", "MatMul", "LayerNormalization"):
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
    name = unique(f"{old.name}{SUFFIX}", taken)
    new = add_initializer(node.graph, name, np.asarray(array, np.float32), ir.DataType.FLOAT)
    node.replace_input_with(index, new)
