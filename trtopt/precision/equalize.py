"""Equalization: give the channels of an activation similar ranges before it is quantized.

One INT8 scale serves a whole activation. Where its channels differ in range (2 and 100, say) the small ones get two or
three of the 255 levels. If channel c of the activation is divided by s[c] where it is produced, and the weights that
read it are multiplied by s[c], FP32 results stay the same (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; Xiao et al. 2023, "SmoothQuant", for measured activation ranges). The
divisors are those with the least predicted error, or none (`precision.divisors`).

Where it can, the division is absorbed by constants that are there anyway, and costs nothing: the weights and bias of a
Conv, Gemm or MatMul, the factor of a Mul or Div, the scale and bias of a LayerNormalization; it passes through Relu,
pools, and the Add of a constant. Where it cannot, a Mul is inserted behind the producer, if that is an operator that
INT8 kernels do not contain (`_ALONE`: a norm, a GELU, a hard-swish) and the error is predicted to fall to half or less:
a kernel for elements stands there already, and one more multiplication in it is little.

A tensor whose values change gets another name (`SUFFIX`), so that a calibration table made for the network as it was
cannot be taken for one of the equalized network.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.ranges import Channels
from trtopt.precision.divisors import choose
from trtopt.precision.graph import (
    add_initializer,
    attribute,
    constant,
    dims,
    drop_unused_initializers,
    is_float,
    names,
    unique,
)
from trtopt.precision.placement import Placement, place

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.float64]
SUFFIX = "/equalized"
WORTH = 0.5
"""An inserted Mul must bring the predicted squared error down to this share of what it was, or less."""

_PASSES = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"})
_ALONE = frozenset(
    "Abs Div Elu Erf Exp Gelu HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Log Mul Pow "
    "Sigmoid Softplus Sqrt Tanh".split()
)


@dataclass(frozen=True, slots=True)
class Link:
    """An activation that can be equalized: `tensor`, its channel axis counted from the front, and all its readers.

    `absorbers` are the (node, constant input) pairs that absorb the division, and `values` the activation and the
    tensors before it whose values change with it. Without any, a Mul is needed.
    """

    readers: tuple[ir.Node, ...]
    tensor: ir.Value
    axis: int
    absorbers: tuple[tuple[ir.Node, int], ...] = ()
    values: tuple[ir.Value, ...] = ()

    @property
    def name(self) -> str:
        """The name of the activation."""
        return self.tensor.name or ""


def links(model: ir.Model) -> list[Link]:
    """Every activation that can be equalized, in graph order.

    Raises:
        ModelError: the model is quantized already.
    """
    placement = place(model)
    readers: dict[ir.Value, list[ir.Node]] = {}
    for site in placement.sites:
        value = site.node.inputs[0]
        if site.axis is not None and site.node.op_type != "ConvTranspose" and value is not None:
            readers.setdefault(value, []).append(site.node)
    found = []
    for node in model.graph:
        for value in node.outputs:
            link = _link(value, readers[value], placement) if value in readers else None
            if link is not None:
                found.append(link)
    return found


def _link(value: ir.Value, readers: list[ir.Node], placement: Placement) -> Link | None:
    if value.shape is None or not is_float(value):
        return None
    rank = len(value.shape)
    axes = {1 if node.op_type == "Conv" else rank - 1 for node in readers}
    flat = all(node.op_type == "Conv" or len(dims(node.inputs[1]) or ()) == 2 for node in readers)
    if len(axes) > 1 or not flat or any(node.op_type == "Gemm" and attribute(node, "transA", 0) for node in readers):
        return None
    axis = axes.pop()
    if all(node in readers and index == 0 for node, index in value.uses()):
        absorbers, values = _absorbers(value, axis)
        if absorbers:
            return Link(tuple(readers), value, axis, tuple(absorbers), tuple(values))
    source = value.producer()
    if source is None or not (source.op_type in _ALONE or _adds_constant(source, axis, rank)):
        return None
    # Others that read it in 8 bits would need codes of their own: one tensor in memory would become two.
    others = {site.scale_from for site in placement.sites if site.node not in readers}
    return None if value.name in others else Link(tuple(readers), value, axis)


def _adds_constant(node: ir.Node, axis: int, rank: int) -> bool:
    """Whether the node adds one constant to each channel: the end of a norm that is written out, or a bias."""
    fixed = [i for i, value in enumerate(node.inputs) if constant(value) is not None]
    return node.op_type == "Add" and len(fixed) == 1 and _per_channel(node, fixed[0], axis, rank)


def _absorbers(value: ir.Value, axis: int) -> tuple[list[tuple[ir.Node, int]], list[ir.Value]]:
    """Walk back from the activation; empty when something on the way cannot absorb or pass the division."""
    absorbed: list[tuple[ir.Node, int]] = []
    values: list[ir.Value] = []
    while True:
        values.append(value)
        node = value.producer()
        shared = len(values) > 1 and len(list(value.uses())) != 1  # the first one's readers are all multiplied
        if node is None or value.is_graph_output() or shared or not is_float(value):
            return [], []
        rank = len(value.shape) if value.shape is not None else 0
        fixed = [i for i, v in enumerate(node.inputs) if constant(v) is not None]
        if node.op_type in _PASSES:
            value = node.inputs[0]  # type: ignore[assignment]
        elif node.op_type == "Add" and len(fixed) == 1 and _per_channel(node, fixed[0], axis, rank):
            absorbed.append((node, fixed[0]))
            value = node.inputs[1 - fixed[0]]  # type: ignore[assignment]
        elif (node.op_type == "Mul" and len(fixed) == 1) or (node.op_type == "Div" and fixed == [1]):
            able = _per_channel(node, fixed[0], axis, rank)
            return ([*absorbed, (node, fixed[0])], values) if able else ([], [])
        elif node.op_type == "LayerNormalization" and axis == rank - 1 and fixed[:1] == [1]:
            return [*absorbed, *((node, i) for i in fixed)], values
        elif node.op_type in ("Conv", "Gemm", "MatMul") and fixed and fixed[0] == 1 and _gives(node, axis, rank):
            complete = len(node.inputs) < 3 or node.inputs[2] is None or 2 in fixed
            return ([*absorbed, *((node, i) for i in fixed)], values) if complete else ([], [])
        else:
            return [], []


def _per_channel(node: ir.Node, index: int, axis: int, rank: int) -> bool:
    """Whether the constant is one number, or one for each channel."""
    array = constant(node.inputs[index])
    assert array is not None
    sizes = [1] * (rank - array.ndim) + list(array.shape)
    return len(sizes) == rank and all(size == 1 for i, size in enumerate(sizes) if i != axis)


def _gives(node: ir.Node, axis: int, rank: int) -> bool:
    """Whether the node's output channels lie on that axis."""
    return axis == 1 if node.op_type == "Conv" else axis == rank - 1


def equalize(
    model: ir.Model, chosen: list[Link], seen: Mapping[str, Channels], exponents: Sequence[float]
) -> tuple[list[str], list[str]]:
    """Rewrite the model in place; return the names of the activations equalized for nothing, and by a Mul.

    `seen[t]` is what was seen of the channels of activation t, `exponents` what its divisors are chosen from.
    """
    taken = names(model.graph)
    absorbed: list[str] = []
    inserted: list[str] = []
    for link in chosen:
        weights = [np.asarray(constant(node.inputs[1]), np.float64) for node in link.readers]
        pairs = zip(link.readers, weights, strict=True)
        grouped = [_grouped(node, weight).astype(np.float32) for node, weight in pairs]
        choice = choose(seen[link.name], grouped, exponents)
        if choice is None or (not link.absorbers and choice.error > WORTH):
            continue
        for node, weight in zip(link.readers, weights, strict=True):
            _multiply(node, 1, _along_inputs(node, weight, choice.divisors), taken)
        (absorbed if link.absorbers else inserted).append(link.name)
        if link.absorbers:
            _absorb(link, choice.divisors, taken)
        else:
            _insert(link, choice.divisors, taken)
    drop_unused_initializers(model.graph)
    return absorbed, inserted


def _absorb(link: Link, divisors: Array, taken: set[str]) -> None:
    for node, index in link.absorbers:
        array = np.asarray(constant(node.inputs[index]), np.float64)
        factors = divisors if node.op_type == "Div" else 1 / divisors
        _multiply(node, index, _along_outputs(node, index, array, factors, link.axis), taken)
    for value in link.values:
        value.name = f"{value.name}{SUFFIX}"


def _insert(link: Link, divisors: Array, taken: set[str]) -> None:
    import onnx_ir as ir

    value, graph = link.tensor, link.tensor.graph
    source = value.producer()
    assert source is not None
    assert isinstance(graph, ir.Graph)
    shape = [-1 if i == link.axis else 1 for i in range(len(value.shape or ()))]
    factors = np.asarray(1 / divisors, np.float32).reshape(shape)
    constant = add_initializer(graph, unique(f"{value.name}/factors", taken), factors, ir.DataType.FLOAT)
    result = ir.Value(name=unique(f"{value.name}{SUFFIX}", taken), type=value.type, shape=value.shape)
    name = unique(f"{value.name}{SUFFIX}/Mul", taken)
    graph.insert_after(source, ir.node("Mul", [value, constant], outputs=[result], name=name))
    for node in link.readers:
        node.replace_input_with(0, result)


def _grouped(node: ir.Node, weight: Array) -> Array:
    """The weight as [groups, outputs / groups, channels / groups, taps]."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        return weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    return np.moveaxis(weight, _input_axis(node, weight), -1)[None, :, :, None]


def _input_axis(node: ir.Node, weight: Array) -> int:
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight.ndim - 2


def _along_inputs(node: ir.Node, weight: Array, factors: Array) -> Array:
    """The weight with what reads input channel c multiplied by factors[c]."""
    if node.op_type == "Conv":
        grouped = _grouped(node, weight)
        return np.asarray((grouped * factors.reshape(len(grouped), 1, -1, 1)).reshape(weight.shape))
    shape = [-1 if i == _input_axis(node, weight) else 1 for i in range(weight.ndim)]
    return weight * factors.reshape(shape)


def _along_outputs(node: ir.Node, index: int, array: Array, factors: Array, axis: int) -> Array:
    """The constant with what makes output channel c multiplied by factors[c]."""
    if node.op_type in ("Conv", "Gemm", "MatMul", "LayerNormalization"):
        first = node.op_type == "Conv" or (node.op_type == "Gemm" and index == 1 and attribute(node, "transB", 0))
        position = 0 if first else array.ndim - 1
        return array * factors.reshape([-1 if i == position else 1 for i in range(max(array.ndim, 1))])
    rank = len(node.outputs[0].shape or ())
    return np.asarray(array * factors.reshape([-1 if i == axis else 1 for i in range(rank)]))


def _multiply(node: ir.Node, index: int, array: Array, taken: set[str]) -> None:
    import onnx_ir as ir

    old = node.inputs[index]
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    name = unique(f"{old.name}{SUFFIX}", taken)
    new = add_initializer(node.graph, name, np.asarray(array, np.float32), ir.DataType.FLOAT)
    node.replace_input_with(index, new)
