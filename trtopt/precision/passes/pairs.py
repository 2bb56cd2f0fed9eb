"""Equalization pairs: which activations can be divided channel by channel, where the division goes, and who reads them.

The consumers of an activation may read it through operators that only move values, and so may the division reach the
constants that absorb it (`trtopt.graph.views`): one linear layer is written in many ways.

So is an activation function. A GELU in parts ends in a factor 1/2, or has it on one side of its product, and a
hard-swish in parts ends in a division by 6; these constants absorb the division. One node has the factor inside: it
gets the division as a Mul behind it, and every form is equalized alike.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtopt.graph.query import constant, dims, is_float
from trtopt.graph.views import after, before
from trtopt.precision.passes.depthwise import behind, is_depthwise
from trtopt.precision.passes.operands import channel_axis
from trtopt.precision.passes.placement import Placement, is_average_pool, place

if TYPE_CHECKING:
    import onnx_ir as ir

    Absorber = tuple[ir.Node, int | None, int]

# Operators f with f(x / s) = f(x) / s for every channel and s > 0. So are average pools.
_PASS_THROUGH = frozenset({"Relu", "MaxPool"})
_WITH_FACTOR = frozenset({"Gelu", "HardSigmoid", "HardSwish"})
"""Functions whose forms in parts end in a constant factor."""
_NORMS = {
    "LayerNormalization": -1,
    "RMSNormalization": -1,
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
}
"""Norms with their channel axis. Input 1 is the scale, and input 2 the bias."""
# Operators that TensorRT runs in pointwise or normalization kernels, not fused into INT8 convolutions and products.
_POINTWISE = frozenset(
    "Abs Div Elu Erf Exp Gelu HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Log Mul Pow "
    "Sigmoid Softplus Sqrt Tanh".split()
)


@dataclass(frozen=True, slots=True)
class Link:
    """An equalization pair: an activation that can be divided, and the consumers whose weights are multiplied.

    Attributes:
        consumers: the weighted operators that read the activation, also through operators that only move values.
        tensor: the activation.
        axis: its channel axis, counted from the front.
        uses: (node, index of an input) of the activation that lead to the consumers.
        views: the tensors between the activation and the consumers.
        absorbers: (node, index of a constant input, channel axis of its output) that absorb the division. The index is
            None for a node that has a factor inside: a Mul behind it absorbs the division. If there are no absorbers,
            a Mul must be inserted behind the activation, for the consumers alone.
        values: the tensors whose values change then: the activation and those between it and the absorbers.
    """

    consumers: tuple[ir.Node, ...]
    tensor: ir.Value
    axis: int
    uses: tuple[tuple[ir.Node, int], ...]
    views: tuple[ir.Value, ...]
    absorbers: tuple[Absorber, ...] = ()
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
    # The channel axis on which each weighted operator reads its input. Products of two activations have no weight.
    axes: dict[ir.Node, int] = {}
    roots: dict[ir.Value, set[int]] = {}
    for site in placement.sites:
        value, axis = site.node.inputs[0], channel_axis(site.node)
        if site.axis is None or axis is None or site.node.op_type == "ConvTranspose" or not dims(value):
            continue
        assert value is not None
        axes[site.node] = axis % len(dims(value) or ())
        root, root_axis = _root(value, axes[site.node])
        roots.setdefault(root, set()).add(root_axis)
    # Channels on two axes of one tensor cannot both be equalized.
    single = [value for node in model.graph for value in node.outputs if len(roots.get(value, ())) == 1]
    # A Mul behind an INT8 kernel of a depthwise convolution would keep it from quantizing its output.
    fused = {value for site in placement.sites if is_depthwise(site.node) for value in behind(site.node)}
    candidates = [_link(value, next(iter(roots[value])), axes, placement, fused) for value in single]
    return [link for link in candidates if link is not None]


def _root(value: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """Return the tensor that a value was moved from, with the axis of its channels there."""
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        moved = before(node, axis)
        if moved is None:
            break
        value, axis = node.inputs[0], moved
    return value, axis


@dataclass(slots=True)
class _Reading:
    """The weighted operators that read a tensor's channels, the uses and views that lead to them, and other uses."""

    consumers: list[ir.Node]
    uses: list[tuple[ir.Node, int]]
    views: list[ir.Value]
    others: bool


def _reading(value: ir.Value, axis: int, axes: Mapping[ir.Node, int]) -> _Reading:
    """Return who reads the channels of a value on `axis`. A view that anything else reads as well is another use."""
    reading = _Reading([], [], [], others=value.is_graph_output())
    for node, index in value.uses():
        if index == 0 and axes.get(node) == axis:
            reading.consumers.append(node)
            reading.uses.append((node, index))
            continue
        moved = after(node, axis) if index == 0 else None
        inner = _reading(node.outputs[0], moved, axes) if moved is not None else None
        if inner is None or inner.others or not inner.consumers:
            reading.others = True
            continue
        reading.consumers += inner.consumers
        reading.uses.append((node, index))
        reading.views += [node.outputs[0], *inner.views]
    return reading


def _link(
    value: ir.Value, axis: int, axes: Mapping[ir.Node, int], placement: Placement, fused: Collection[ir.Value]
) -> Link | None:
    """Return the equalization pair of an activation and its weighted consumers; None if it cannot be equalized.

    No Mul is inserted behind a tensor in `fused`.
    """
    reading = _reading(value, axis, axes)
    if not reading.consumers or not is_float(value):
        return None
    link = Link(tuple(reading.consumers), value, axis, tuple(reading.uses), tuple(reading.views))
    # The tensor itself may change only if nothing else reads it: other consumers would read the divided values.
    if not reading.others:
        absorbers, values = _absorbers(value, axis)
        if absorbers:
            return replace(link, absorbers=tuple(absorbers), values=tuple(values))
    source, rank = value.producer(), len(dims(value) or ())
    if source is None or value in fused or not (source.op_type in _POINTWISE or _adds_constant(source, axis, rank)):
        return None
    # Other consumers keep the tensor before the Mul. If one of them quantizes it too, there would be two INT8 tensors.
    others = {site.scale_from for site in placement.sites if site.node not in link.consumers}
    return None if value.name in others else link


def _adds_constant(node: ir.Node, axis: int, rank: int) -> bool:
    """Return whether the node adds a constant per channel: the end of a norm in separate operators, or a bias."""
    constants = [i for i, value in enumerate(node.inputs) if constant(value) is not None]
    return node.op_type == "Add" and len(constants) == 1 and _is_per_channel(node, constants[0], axis, rank)


def _absorbers(value: ir.Value, axis: int, *, is_end: bool = True) -> tuple[list[Absorber], list[ir.Value]]:
    """Walk back from an activation to the constants that absorb its division.

    Args:
        value: the activation, or with `is_end` False a tensor on the way.
        axis: its channel axis, counted from the front.
        is_end: whether the consumers of the value are all compensated. A tensor before must have no other consumer.

    Returns:
        The absorbers and the tensors whose values change, as in `Link`; both are empty if an operator on the way can
        neither absorb the division nor pass it on.
    """
    absorbers: list[Absorber] = []
    values: list[ir.Value] = []
    channels = (dims(value) or ())[axis]
    while True:
        node = value.producer()
        is_shared = not (is_end and not values) and len(list(value.uses())) != 1
        if node is None or value.is_graph_output() or is_shared or not is_float(value):
            return [], []
        # An operand that is broadcast has other channels.
        shape = dims(value)
        if shape is None or not axis < len(shape) or channels is None or shape[axis] != channels:
            return [], []
        # f(x) / s = f(x) (1 / s): the end of the walk. The output itself stays.
        if node.op_type in _WITH_FACTOR:
            return [*absorbers, (node, None, axis)], values
        values.append(value)
        rank = len(shape)
        constants = [i for i, operand in enumerate(node.inputs) if constant(operand) is not None]
        moved = before(node, axis)
        # f(x) / s = f(x / s): go on with the operator's input.
        if moved is not None or node.op_type in _PASS_THROUGH or is_average_pool(node):
            value, axis = node.inputs[0], axis if moved is None else moved  # type: ignore[assignment]
        # (x + c) / s = x / s + c / s: the constant takes its part, and the division goes on with x.
        elif node.op_type == "Add" and len(constants) == 1 and _is_per_channel(node, constants[0], axis, rank):
            absorbers.append((node, constants[0], axis))
            value = node.inputs[1 - constants[0]]  # type: ignore[assignment]
            if len(dims(value) or ()) != rank:
                return [], []
        # (x y) / s = (x / s) y = x (y / s): the first factor whose constants absorb the division.
        elif node.op_type == "Mul" and not constants:
            for factor in node.inputs:
                if factor is not None and len(dims(factor) or ()) == rank:
                    before_it, changed = _absorbers(factor, axis, is_end=False)
                    if before_it and (dims(factor) or ())[axis] == channels:
                        return [*absorbers, *before_it], [*values, *changed]
            return [], []
        else:
            own = _constants(node, constants, axis, rank)
            return ([*absorbers, *((node, i, axis) for i in own)], values) if own else ([], [])


def _constants(node: ir.Node, constants: list[int], axis: int, rank: int) -> list[int]:
    """Return the constant inputs of a node that absorb a division of its output; empty if they do not."""
    # (x c) / s = x (c / s), and (x / c) / s = x / (c s).
    if (node.op_type == "Mul" and len(constants) == 1) or (node.op_type == "Div" and constants == [1]):
        return constants if _is_per_channel(node, constants[0], axis, rank) else []
    # (W x + b) / s: the weight, and the bias, which must be a constant as well. So are scale and bias of a norm.
    if node.op_type not in ("Conv", "Gemm", "MatMul", *_NORMS) or constants[:1] != [1]:
        return []
    has_computed_bias = len(node.inputs) > 2 and node.inputs[2] is not None and 2 not in constants
    if has_computed_bias or axis != _output_channel_axis(node, rank):
        return []
    # The output of a product with a vector has no channels.
    if node.op_type == "MatMul" and len(dims(node.inputs[1]) or ()) < 2:
        return []
    return [i for i in constants if i in (1, 2)]


def _is_per_channel(node: ir.Node, index: int, axis: int, rank: int) -> bool:
    """Return whether a constant input is a scalar or has one value per channel, after broadcasting to `rank`."""
    array = constant(node.inputs[index])
    assert array is not None
    sizes = [1] * (rank - array.ndim) + list(array.shape)
    return len(sizes) == rank and all(size == 1 for i, size in enumerate(sizes) if i != axis)


def _output_channel_axis(node: ir.Node, rank: int) -> int:
    """Return the axis of the output channels of a weighted operator or norm, in an output of that rank."""
    return 1 if node.op_type == "Conv" else _NORMS.get(node.op_type, -1) % rank
