"""Folding of a scale and a shift per channel into the linear layer before them.

A frozen batch norm is written as BatchNormalization, as Mul and Add, or as Sub and Div, with its constants on either
side, and perhaps after a Transpose or a Reshape. Left in place, it keeps TensorRT from fusing a residual Add into the
convolution, and is one more kernel after a quantized product.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.graph.query import (
    add_initializer,
    attribute,
    constant,
    dims,
    drop_unused_initializers,
    is_float,
    names,
    producer,
    unique,
)
from trtopt.graph.views import before

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.float64]
Edits = list[tuple["ir.Node", int, Array]]
"""(node, index of an input, its new constant)."""

_MAX_COPY = 1 << 20
"""Bytes up to which a weight that other nodes read, too, is copied in order to be folded."""


@dataclass(frozen=True, slots=True)
class _Step:
    """y = scale * x + shift for each channel, both float64 [channels], with the channels of x on `axis`."""

    scale: Array
    shift: Array
    axis: int


def fold_affine(model: ir.Model) -> None:
    """Fold multiplications and additions of constants per channel into the linear layers before them, in place.

    Constants must be initializers, and the shapes of all tensors must have been inferred.
    """
    taken = names(model.graph)
    for node in list(model.graph):
        for index, step in _steps(node):
            edits = _absorbed(node.inputs[index], step)
            if edits is not None:
                for edited, position, array in edits:
                    _replace(edited, position, array, taken)
                _bypass(node, node.inputs[index])
                break
    drop_unused_initializers(model.graph)


def _steps(node: ir.Node) -> list[tuple[int, _Step]]:
    """Return (index of the input, step) for each axis on which the channels of a node's input may be."""
    arrays = [constant(value) for value in node.inputs]
    computed = [index for index, array in enumerate(arrays) if array is None]
    sizes = dims(node.outputs[0])
    if len(computed) != 1 or node.domain not in ("", "ai.onnx") or not sizes or not is_float(node.outputs[0]):
        return []
    index = computed[0]
    if dims(node.inputs[index]) != sizes:  # the constant must not broadcast the input
        return []
    if node.op_type == "BatchNormalization" and index == 0 and len(node.outputs) == 1:
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays[1:])
        scale = scale / np.sqrt(variance + epsilon)
        return [(0, _Step(scale, bias - mean * scale, 1))]
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or (node.op_type == "Div" and index == 1):
        return []
    found = []
    for axis in range(1, len(sizes)):
        array = _per_channel(arrays[1 - index], sizes, axis)
        if array is not None:
            one, zero = np.ones_like(array), np.zeros_like(array)
            with np.errstate(divide="ignore"):
                scale, shift = {
                    "Mul": (array, zero),
                    "Div": (1 / array, zero),
                    "Add": (one, array),
                    "Sub": (one, -array) if index == 0 else (-one, array),
                }[node.op_type]
            found.append((index, _Step(scale, shift, axis)))
    return found


def _per_channel(
    array: npt.NDArray[np.generic] | None, sizes: tuple[int | None, ...], axis: int
) -> npt.NDArray[np.float64] | None:
    """Return a constant as float64 [channels]; None unless it is a scalar or has one value per channel on `axis`."""
    channels = sizes[axis]
    if array is None or channels is None or array.ndim > len(sizes):
        return None
    shape = [1] * (len(sizes) - array.ndim) + list(array.shape)
    if any(size != 1 for i, size in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return np.array(np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (channels,)))


def _absorbed(value: ir.Value | None, step: _Step) -> Edits | None:
    """Return the constants that give a value the result of the step; None if no linear layer can absorb it."""
    node, sizes = producer(value), dims(value)
    if value is None or node is None or not sizes or value.is_graph_output() or len(list(value.uses())) != 1:
        return None
    if not (np.isfinite(step.scale).all() and np.isfinite(step.shift).all()) or node.domain not in ("", "ai.onnx"):
        return None
    moved = before(node, step.axis)
    if moved is not None:
        return _absorbed(node.inputs[0], replace(step, axis=moved))
    if node.op_type == "Add":  # the bias of a MatMul
        index = next((i for i, operand in enumerate(node.inputs) if constant(operand) is not None), None)
        added = None if index is None else _per_channel(constant(node.inputs[index]), sizes, step.axis)
        if index is None or added is None or dims(node.inputs[1 - index]) != sizes:
            return None
        edits = _absorbed(node.inputs[1 - index], replace(step, shift=np.zeros_like(step.shift)))
        shape = [-1 if i == step.axis else 1 for i in range(len(sizes))]
        return None if edits is None else [*edits, (node, index, (added * step.scale + step.shift).reshape(shape))]
    return _layer(node, sizes, step)


def _layer(node: ir.Node, sizes: tuple[int | None, ...], step: _Step) -> Edits | None:
    """Return the new weight and bias of a linear layer with outputs of these sizes; None for any other node."""
    is_convolution = node.op_type in ("Conv", "ConvTranspose")
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    weight = constant(node.inputs[1])
    if weight is None or step.axis != (1 if is_convolution else len(sizes) - 1):
        return None
    is_shared = node.inputs[1] is not None and len(list(node.inputs[1].uses())) > 1
    if (not is_convolution and weight.ndim != 2) or (is_shared and weight.nbytes > _MAX_COPY):
        return None
    edits: Edits = [(node, 1, _scaled(node, np.asarray(weight, np.float64), step.scale))]
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None and not step.shift.any():
        return edits
    beta = node.attributes.get("beta")
    if node.op_type == "MatMul" or (beta is not None and beta.as_float() != 1.0):
        return None
    bias = np.zeros_like(step.shift) if given is None else _per_channel(constant(given), (None, *step.scale.shape), 1)
    return None if bias is None else [*edits, (node, 2, bias * step.scale + step.shift)]


def _scaled(node: ir.Node, weight: Array, scale: Array) -> Array:
    """Return the weight of a linear layer with the part of each output channel multiplied by its scale."""
    if node.op_type == "ConvTranspose":  # [inputs, outputs / groups, ...]
        groups = attribute(node, "group", 1)
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return np.asarray((grouped * factors).reshape(weight.shape))
    is_first = node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0))
    return weight * scale.reshape([-1 if i == 0 else 1 for i in range(weight.ndim)] if is_first else [1, -1])


def _replace(node: ir.Node, index: int, array: Array, taken: set[str]) -> None:
    """Make an input a new initializer. One of the old name may be read by other nodes."""
    import onnx_ir as ir

    assert isinstance(node.graph, ir.Graph)
    old = node.inputs[index] if index < len(node.inputs) else None
    name = unique(f"{old.name if old is not None else node.name or node.op_type}/folded", taken)
    new = add_initializer(node.graph, name, np.asarray(array, np.float32), ir.DataType.FLOAT)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, new)


def _bypass(node: ir.Node, value: ir.Value | None) -> None:
    """Remove a node: its consumers, and an output of the graph, read `value` instead, which takes over the name."""
    assert value is not None
    assert node.graph is not None
    output = node.outputs[0]
    name = output.name
    for consumer, index in list(output.uses()):
        consumer.replace_input_with(index, value)
    for index, returned in enumerate(node.graph.outputs):
        if returned is output:
            node.graph.outputs[index] = value
    node.graph.remove(node, safe=True)
    value.name = name
