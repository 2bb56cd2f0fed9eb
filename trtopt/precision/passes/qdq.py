"""Q/DQ pairs: 8-bit types, the arithmetic of quantization, and the nodes and constants written into the graph.

INT8: q = clip(round_half_even(x / scale), -128, 127), with zero point 0. Weights use -127 to 127, a symmetric range.
FP8: q is the E4M3 number nearest to clip(x / scale, -448, 448) (TensorRT developer guide, "Quantized Types").

A weight is stored as an 8-bit initializer with a DequantizeLinear after it. A scale has the type of the tensor that it
scales. It is rounded up to that type, and the weight is quantized with the rounded scale, so that nothing is clipped.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.formats import INT8, Format
from trtopt.graph.query import add_initializer, unique
from trtopt.precision import formats

if TYPE_CHECKING:
    import onnx_ir as ir

FloatArray = npt.NDArray[np.float32]


def quantize(x: FloatArray, scale: FloatArray | float, format: Format = INT8) -> npt.NDArray[np.generic]:
    """Return `x` quantized with `scale`, which is broadcast: int8 or float8_e4m3fn codes."""
    ratio = np.asarray(x, np.float32) / np.asarray(scale, np.float32)
    if format.numpy.kind == "i":
        ratio = np.rint(ratio)
    return np.clip(ratio, format.min, format.max).astype(format.numpy)


def rounding_error(x: npt.NDArray[np.generic], scale: float, format: Format = INT8) -> npt.NDArray[np.generic]:
    """Return the quantization error of each value, float32: its dequantized value minus itself; 0 if it is clipped."""
    clipped = np.clip(np.asarray(x, np.float32), np.float32(format.min * scale), np.float32(format.max * scale))
    return np.asarray(quantize(clipped, scale, format).astype(np.float32) * np.float32(scale) - clipped, np.float32)


def round_scale(scale: FloatArray | np.float32, dtype: ir.DataType) -> FloatArray:
    """Return `scale` rounded up to positive values of `dtype`, as float32; at most the largest that `dtype` has."""
    half = _half(dtype)
    if half is None:
        return np.asarray(np.maximum(scale, np.finfo(np.float32).tiny), np.float32)
    scale = np.minimum(scale, np.float32(half.max))
    rounded = np.asarray(scale).astype(half.numpy)
    bits = rounded.view(np.uint16) + ((rounded.astype(np.float32) < scale) | (rounded == 0)).astype(np.uint16)
    return np.asarray(bits.view(half.numpy), np.float32)


@dataclass(frozen=True, slots=True)
class Coded:
    """A quantized weight: 8-bit `codes` of its shape, and float32 `scales`, per tensor [] or shaped to broadcast."""

    codes: npt.NDArray[np.generic]
    scales: FloatArray

    def values(self) -> FloatArray:
        """Return the dequantized weight, float32."""
        return np.asarray(self.codes.astype(np.float32) * self.scales, np.float32)


def code_weight(weight: FloatArray, axis: int, dtype: ir.DataType, format: Format = INT8) -> Coded:
    """Return the weight quantized with scales of absmax / `format.max`, rounded up to `dtype`.

    There is one scale per channel on `axis`, or one per tensor, as the format says.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis) if format.per_channel else None
    scales = np.abs(weight).max(axis=others, keepdims=format.per_channel) / np.float32(format.max)
    scales = round_scale(np.asarray(scales, np.float32), dtype)
    return Coded(quantize(weight, scales, format), scales)


def quantize_activation(value: ir.Value, scale: float, taken: set[str], format: Format = INT8) -> ir.Value:
    """Insert a QuantizeLinear and a DequantizeLinear after `value`, and return the dequantized value.

    Args:
        value: a float32, float16 or bfloat16 tensor, whose type the result has.
        scale: its scale, which is rounded up to the type of `value`.
        taken: the names in use in the graph; the new ones are added.
        format: the 8-bit type.
    """
    import onnx_ir as ir

    graph, dtype = value.graph, value.dtype or ir.DataType.FLOAT
    assert isinstance(graph, ir.Graph)
    parts = ("scale", "zero_point", "codes", "dq", "QuantizeLinear", "DequantizeLinear")
    name = {part: unique(f"{value.name}/{part}", taken) for part in parts}
    number = _scale(graph, name["scale"], round_scale(np.float32(scale), dtype), dtype)
    zero = _zero(graph, name["zero_point"], (), format)
    codes = ir.Value(name=name["codes"], type=ir.TensorType(format.dtype), shape=value.shape)
    result = ir.Value(name=name["dq"], type=ir.TensorType(dtype), shape=value.shape)
    pair = [
        ir.node("QuantizeLinear", [value, number, zero], outputs=[codes], name=name["QuantizeLinear"]),
        ir.node("DequantizeLinear", [codes, number, zero], outputs=[result], name=name["DequantizeLinear"]),
    ]
    source = value.producer()
    if source is None:
        graph.insert_before(graph[0], pair)
    else:
        graph.insert_after(source, pair)
    return result


def quantize_weight(
    node: ir.Node, value: ir.Value, coded: Coded, axis: int, taken: set[str], format: Format = INT8
) -> ir.Value:
    """Add an 8-bit weight and a DequantizeLinear to the graph, before `node`, and return the dequantized value.

    Args:
        node: the weighted operator, which is not changed.
        value: the initializer that it reads now, whose type the result has.
        coded: the quantized weight.
        axis: the axis of its output channels.
        taken: the names in use in the graph; the new ones are added.
        format: the 8-bit type.
    """
    import onnx_ir as ir

    graph, dtype = node.graph, value.dtype or ir.DataType.FLOAT
    assert isinstance(graph, ir.Graph)
    scales = coded.scales.reshape(-1) if format.per_channel else coded.scales
    parts = ("codes", "scale", "zero_point", "dq", "DequantizeLinear")
    name = {part: unique(f"{value.name}/{part}", taken) for part in parts}
    codes = add_initializer(graph, name["codes"], coded.codes, format.dtype)
    number = _scale(graph, name["scale"], scales, dtype)
    zero = _zero(graph, name["zero_point"], scales.shape, format)
    result = ir.Value(name=name["dq"], type=ir.TensorType(dtype), shape=value.shape)
    attributes = {"axis": axis} if format.per_channel else {}
    dequantize = ir.node(
        "DequantizeLinear", [codes, number, zero], attributes, outputs=[result], name=name["DequantizeLinear"]
    )
    graph.insert_before(node, dequantize)
    return result


def _zero(graph: ir.Graph, name: str, shape: tuple[int, ...], format: Format) -> ir.Value:
    return add_initializer(graph, name, quantize(np.zeros(shape, np.float32), 1.0, format), format.dtype)


def _scale(graph: ir.Graph, name: str, scale: FloatArray, dtype: ir.DataType) -> ir.Value:
    half = _half(dtype)
    return add_initializer(graph, name, np.asarray(scale).astype(half.numpy if half else np.float32), dtype)


def _half(dtype: ir.DataType) -> Format | None:
    """Return the 16-bit type of this data type; None for any other."""
    return next((half for half in formats(16).values() if half.dtype == dtype), None)
