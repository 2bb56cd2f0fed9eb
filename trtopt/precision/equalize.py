"""Cross-layer equalization: give the channels of an activation similar ranges, where that costs nothing at run time.

One INT8 scale serves a whole activation. Where its channels differ in range (2 and 100, say) the small ones get two or
three of the 255 levels. If channel c of the activation is divided by s[c] where it is produced, and the weights that
read it are multiplied by s[c], FP32 results stay the same (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; Xiao et al. 2023, "SmoothQuant", for measured activation ranges).

The division is absorbed by constants that are there anyway: the weights and bias of a Conv, Gemm or MatMul, the factor
of a Mul or Div, the scale and bias of a LayerNormalization; it passes through Relu, pools, and the Add of a constant.
An activation with another reader, or behind anything else, is left alone.

A tensor whose values change gets another name (`SUFFIX`), so that a calibration table made for the network as it was
cannot be taken for one of the equalized network.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.precision.graph import (
    add_initializer,
    attribute,
    constant,
    drop_unused_initializers,
    is_float,
    names,
    unique,
)
from trtopt.precision.placement import weighted_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.float64]
SUFFIX = "/equalized"
MAX_RATIO = 1e3
"""No channel is stretched further than this: a channel that was silent on a few samples may speak later."""

_PASSES = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"})


@dataclass(frozen=True, slots=True)
class Link:
    """A weighted node whose activation can be equalized, and the (node, constant input) pairs that absorb the division.

    `axis` is the channel axis of the activation, counted from the front; `values` are the activation and the tensors
    before it whose values change with it.
    """

    reader: ir.Node
    tensor: str
    axis: int
    absorbers: tuple[tuple[ir.Node, int], ...]
    values: tuple[ir.Value, ...]


def links(graph: ir.Graph) -> list[Link]:
    """Every activation that can be equalized, in graph order."""
    found = []
    for node in graph:
        inputs = weighted_inputs(node)
        if len(inputs) < 2 or inputs[1][1] is None or node.op_type == "ConvTranspose":
            continue
        value = node.inputs[0]
        if value is None or value.shape is None or constant(node.inputs[1]) is None:
            continue
        axis = 1 if node.op_type == "Conv" else len(value.shape) - 1
        absorbers, values = _absorbers(value, axis)
        if absorbers:
            found.append(Link(node, value.name or "", axis, tuple(absorbers), tuple(values)))
    return found


def _absorbers(value: ir.Value, axis: int) -> tuple[list[tuple[ir.Node, int]], list[ir.Value]]:
    """Walk back from the activation; empty when something on the way cannot absorb or pass the division."""
    absorbed: list[tuple[ir.Node, int]] = []
    values: list[ir.Value] = []
    while True:
        values.append(value)
        node = value.producer()
        if node is None or value.is_graph_output() or len(list(value.uses())) != 1 or not is_float(value):
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


def equalize(model: ir.Model, chosen: list[Link], ranges: Mapping[str, Array]) -> list[str]:
    """Rewrite the constants in place; return the names of the activations that were equalized.

    `ranges[t]` is the largest magnitude seen in each channel of activation t.
    """
    taken = names(model.graph)
    done = []
    for link in chosen:
        seen = ranges.get(link.tensor)
        if seen is None or not np.isfinite(seen).all() or seen.max() == 0:
            continue
        weight = np.asarray(constant(link.reader.inputs[1]), np.float64)
        divisors = _divisors(link.reader, weight, seen)
        _multiply(link.reader, 1, _along_inputs(link.reader, weight, divisors), taken)
        for node, index in link.absorbers:
            array = np.asarray(constant(node.inputs[index]), np.float64)
            factors = divisors if node.op_type == "Div" else 1 / divisors
            _multiply(node, index, _along_outputs(node, index, array, factors, link.axis), taken)
        for value in link.values:
            value.name = f"{value.name}{SUFFIX}"
        done.append(link.tensor)
    drop_unused_initializers(model.graph)
    return done


def _divisors(node: ir.Node, weight: Array, seen: Array) -> Array:
    """s of each channel, float64 [channels], the largest being 1.

    A depthwise weight has a scale of its own for each channel, so that the activation is equalized in full; otherwise
    the difficulty is split evenly between activation and weight (SmoothQuant's alpha of 0.5).
    """
    floor = np.maximum(seen, seen.max() / MAX_RATIO)
    if node.op_type == "Conv" and attribute(node, "group", 1) == seen.size:
        return np.asarray(floor / floor.max())
    others = _input_magnitudes(node, weight)
    divisors = np.sqrt(floor / np.maximum(others, others.max() / MAX_RATIO))
    return np.asarray(divisors / divisors.max())


def _input_magnitudes(node: ir.Node, weight: Array) -> Array:
    """Largest weight that reads each input channel: [channels]."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        taps = np.abs(weight).reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
        return np.asarray(taps.max(axis=(1, 3)).reshape(-1))
    axis = _input_axis(node, weight)
    return np.asarray(np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)))


def _input_axis(node: ir.Node, weight: Array) -> int:
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight.ndim - 2


def _along_inputs(node: ir.Node, weight: Array, factors: Array) -> Array:
    """The weight with what reads input channel c multiplied by factors[c]."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        grouped = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
        return np.asarray((grouped * factors.reshape(groups, 1, weight.shape[1], 1)).reshape(weight.shape))
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
