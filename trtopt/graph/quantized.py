"""Repair of graphs that are quantized already, with Q/DQ nodes, for TensorRT: int8, zero points of 0, positive scales.

The repairs keep all results, with one exception: uint8 with a zero point of 0, as after a Relu, has 255 levels above 0
(and so has int8 with a zero point of -128), and they become 127.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtopt.errors import ModelError
from trtopt.graph.query import (
    FLOAT_COMPUTE_FREE,
    SAME_VALUES,
    add_initializer,
    attribute,
    constant,
    consumers,
    drop_unused_initializers,
    names,
    producer,
    unique,
)
from trtopt.graph.transposed import transpose_weights

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Array = npt.NDArray[Any]

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_INTEGER_OPERATORS = frozenset(
    "QLinearConv QLinearMatMul QLinearAdd QGemm ConvInteger MatMulInteger DynamicQuantizeLinear QLinearMul "
    "QLinearConcat QLinearGlobalAveragePool QLinearSigmoid QLinearLeakyRelu QLinearAveragePool QLinearSoftmax".split()
)
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Exp", "Abs", "Sqrt"})
_OF_ANY = frozenset({"INT8", "UINT8", "FLOAT8E4M3FN", "FLOAT4E2M1"})
_OF_WEIGHTS = _OF_ANY | {"INT4", "UINT4", "INT32"}
"""Types of quantized values that TensorRT has, or that are repaired."""

_MIDDLE = 128  # the zero point of uint8 that is 0 in int8
_SHOWN = 3


def is_quantized(graph: onnx.GraphProto) -> bool:
    """Return whether a graph contains Q/DQ nodes or integer operators."""
    return any(node.op_type in _PAIR or node.op_type in _INTEGER_OPERATORS for node in graph.node)


def repair(model: ir.Model, path: Path) -> str:
    """Repair a quantized model in place, and return a note on what was changed; empty if nothing was.

    Args:
        model: the model.
        path: its file, for errors.

    Raises:
        ModelError: a node cannot be repaired; the message names the first ones.
    """
    for node in model.graph:
        if node.op_type in _PAIR:  # onnxruntime has the same operators in its own domain
            node.domain = ""
    transpose_weights(model)
    graph, problems, done = model.graph, [], Counter[tuple[str, str]]()
    taken = names(graph)
    # Read before anything changes, as Q and DQ share their scales and zero points.
    pairs = [(node, *_parameters(node)) for node in graph if node.op_type in _PAIR]
    problems += [f"{node.op_type} {_called(node)}" for node in graph if node.op_type in _INTEGER_OPERATORS]
    for node, scale, zero in pairs:
        codes = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if scale is None or zero is None:
            problems.append(f"the scale or zero point of {_called(node)} is computed at run time")
        elif (kind := _kind(node, zero)) not in (_OF_WEIGHTS if codes is not None else _OF_ANY):
            problems.append(f"{node.op_type} {_called(node)} has values of type {kind.lower()}")
        elif attribute(node, "block_size", 0) or kind == "UINT4":
            problem, change = _repair_blocks(graph, node, (codes, zero), taken)
            problems += [problem] if problem else []
            if change:
                done[change] += 1
        elif not _fits(node, scale, zero):
            problems.append(f"{node.op_type} {_called(node)} has {scale.size} scales and {zero.size} zero points")
        elif codes is not None and codes.dtype == np.int32:
            _replace_bias(graph, node, (codes.astype(np.float32) - zero) * _along(scale, codes, node), taken)
            done["INT32 bias made a constant", "INT32 biases made constants"] += 1
        elif zero.dtype not in (np.int8, np.uint8):  # FP8 and others have no zero points
            continue
        elif zero.dtype == np.uint8 and codes is None and _are_read_elsewhere(node):
            problems.append(f"the uint8 codes of {_called(node)} are read or written outside of Q and DQ")
        else:
            problem, change = _repair_pair(graph, node, codes, (scale, zero), taken)
            problems += [problem] if problem else []
            if change:
                done[change] += 1
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelError(
            f"{path} is quantized in a way that TensorRT does not support",
            why="; ".join(problems[:_SHOWN]) + more,
            fix="Quantize it again to symmetric int8 in QDQ format (in onnxruntime: QuantFormat.QDQ, QInt8, "
            "ActivationSymmetric and WeightSymmetric), or convert the FP32 model with --calib",
        )
    drop_unused_initializers(graph)
    graph.sort()
    return ", ".join(f"{count} {change}" for change, count in _counted(done))


def _are_read_elsewhere(node: ir.Node) -> bool:
    """Return whether the codes of Q or DQ come from, or go to, anything but Q, DQ and operators that move them.

    Such codes, an input of the network for example, cannot be made int8.
    """
    todo = [node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]]
    seen: set[ir.Value] = set()
    while todo:
        value = todo.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        source, readers = value.producer(), consumers(value)
        if value.is_graph_output() or (source is None and constant(value) is None):
            return True
        moves = [reader for reader in readers if reader.op_type != "DequantizeLinear"]
        if source is not None and source.op_type != "QuantizeLinear":
            moves.append(source)
            todo.append(source.inputs[0])
        if any(move.op_type not in SAME_VALUES | FLOAT_COMPUTE_FREE for move in moves):
            return True
        todo += [reader.outputs[0] for reader in moves if reader is not source]
    return False


def _called(node: ir.Node) -> str:
    """Return the name of a node; that of its result if it has none."""
    return node.name or node.outputs[0].name or ""


def _counted(done: Counter[tuple[str, str]]) -> list[tuple[str, int]]:
    """Return the changes with their counts, in words for one or for several."""
    return [(change[count > 1], count) for change, count in done.items()]


def _kind(node: ir.Node, zero: Array) -> str:
    """Return the ONNX type of the quantized values of Q or DQ; that of the zero point if it is not known."""
    import onnx_ir as ir

    value = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    dtype = None if value is None else value.dtype
    return (dtype or ir.DataType.from_numpy(zero.dtype)).name


def _parameters(node: ir.Node) -> tuple[Array | None, Array | None]:
    """Return scale and zero point of Q or DQ, None where it is computed. The default of the zero point is 0."""
    import onnx_ir as ir

    scale = constant(node.inputs[1])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return scale, constant(node.inputs[2])
    value = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    signed = value is not None and value.dtype not in (None, ir.DataType.UINT8)
    return scale, np.zeros(() if scale is None else scale.shape, np.int8 if signed else np.uint8)


def _fits(node: ir.Node, scale: Array, zero: Array) -> bool:
    """Return whether there is one scale and zero point, or one for each channel."""
    if scale.size != zero.size:
        return False
    value = node.inputs[0]
    if scale.size == 1 or value is None or value.shape is None:
        return scale.size == 1
    axis = _axis(node, len(value.shape))
    return -len(value.shape) <= axis < len(value.shape) and value.shape[axis] in (scale.size, None)


def _axis(node: ir.Node, rank: int) -> int:
    """Return the axis of the channels."""
    return 0 if rank == 1 else node.attributes["axis"].as_int() if "axis" in node.attributes else 1


def _along(scale: Array, codes: Array, node: ir.Node) -> Array:
    """Return the scale, or zero point, in a shape that broadcasts to the codes."""
    if scale.ndim == 0 or scale.size == 1:
        return scale.reshape(())
    axis = _axis(node, codes.ndim)
    return scale.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])


def _replace_bias(graph: ir.Graph, node: ir.Node, values: Array, taken: set[str]) -> None:
    """Replace the DQ of a constant by its result."""
    import onnx_ir as ir

    name = unique(f"{node.outputs[0].name}/values", taken)
    bias = add_initializer(graph, name, np.asarray(values, np.float32), ir.DataType.FLOAT)
    node.outputs[0].replace_all_uses_with(bias)
    graph.remove(node, safe=True)


def _repair_pair(
    graph: ir.Graph, node: ir.Node, codes: Array | None, parameters: tuple[Array, Array], taken: set[str]
) -> tuple[str, tuple[str, str] | None]:
    """Give Q or DQ an int8 zero point of 0 and positive scales; return the problem, and what was changed."""
    import onnx_ir as ir

    scale, zero = parameters
    what = f"{node.op_type} {_called(node)}"
    offset = _MIDDLE if zero.dtype == np.uint8 else 0
    shifted = zero.astype(np.int64) - offset
    full_range = bool((shifted == -_MIDDLE).all())
    if shifted.any() and not full_range:
        return f"{what} has a zero point of {int(zero.flat[np.abs(shifted).argmax()])}", None
    if full_range and codes is not None:
        return f"{what} reads weights with a zero point of {int(zero.flat[0])}", None
    if codes is None and not (scale > 0).all():
        return f"{what} has a scale of {float(scale.min()):g}", None
    if scale.size > 1 and "axis" not in node.attributes:  # TensorRT's versions differ in the default
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
    if offset == 0 and not full_range and (scale > 0).all():
        return "", None
    if full_range:
        # 255 steps above 0 become 127. What was below 0 was clipped.
        if node.op_type == "QuantizeLinear":
            _clip_negative(graph, node, taken)
        scale = scale * scale.dtype.type(255 / 127)
    if codes is not None:
        fixed = codes.astype(np.int64) - offset
        wide = np.broadcast_to(_along(scale, codes, node), codes.shape)
        fixed = np.clip(np.where(wide == 0, 0, np.where(wide < 0, -fixed, fixed)), -128, 127)
        scale = np.where(scale == 0, scale.dtype.type(1), np.abs(scale)).astype(scale.dtype)
        name = unique(f"{node.inputs[0].name}/int8", taken)  # type: ignore[union-attr]
        node.replace_input_with(0, add_initializer(graph, name, fixed.astype(np.int8), ir.DataType.INT8))
    dtype = node.inputs[1].dtype or ir.DataType.FLOAT  # type: ignore[union-attr]
    node.replace_input_with(1, add_initializer(graph, unique(f"{node.name}/scale", taken), scale, dtype))
    zeros = add_initializer(graph, unique(f"{node.name}/zero", taken), np.zeros(scale.shape, np.int8), ir.DataType.INT8)
    if len(node.inputs) > 2:
        node.replace_input_with(2, zeros)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, zeros)
    if node.op_type == "QuantizeLinear":
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    if full_range:
        return "", ("Q or DQ of 255 positive levels got 127", "Q and DQ of 255 positive levels got 127")
    if offset:
        return "", ("uint8 Q or DQ made int8", "uint8 Q and DQ made int8")
    return "", ("scale made positive", "scales made positive")


def _repair_blocks(
    graph: ir.Graph, node: ir.Node, quantized: tuple[Array | None, Array], taken: set[str]
) -> tuple[str, tuple[str, str] | None]:
    """Make the codes of a weight with a scale for each block int4 around 0; return the problem, and what was changed.

    TensorRT supports blocks of int4, and of no other integers.
    """
    import onnx_ir as ir

    codes, zero = quantized
    middles = {ir.DataType.INT4: 0, ir.DataType.UINT4: 8}
    middle = middles.get(node.inputs[0].dtype) if codes is not None else None  # type: ignore[union-attr, arg-type]
    if codes is None or middle is None or (zero.astype(np.int64) != middle).any():
        return f"{node.op_type} {_called(node)} has blocks of values other than int4 around 0", None
    if not middle:
        return "", None
    shifted = codes.astype(np.int8) - np.int8(middle)
    name = unique(f"{node.name}/int4", taken)
    node.replace_input_with(0, add_initializer(graph, name, shifted, ir.DataType.INT4))
    node.resize_inputs(2)
    return "", ("uint4 weight made int4", "uint4 weights made int4")


def _clip_negative(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    """Insert a Relu before Q, whose uint8 clipped at 0, unless its input is not negative anyway."""
    import onnx_ir as ir

    value = node.inputs[0]
    source = producer(value)
    if value is None or (source is not None and source.op_type in _NOT_NEGATIVE):
        return
    result = ir.Value(name=unique(f"{value.name}/relu", taken), type=value.type, shape=value.shape)
    relu = ir.node("Relu", [value], outputs=[result], name=unique(f"{node.name}/Relu", taken))
    graph.insert_before(node, relu)
    node.replace_input_with(0, result)
