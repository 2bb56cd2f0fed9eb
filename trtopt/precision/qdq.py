"""Write Q/DQ pairs: scale and zero point as constants, weights as INT8 initializers behind a DequantizeLinear.

q = clip(round_half_even(x / scale), -128, 127), zero point 0 (TensorRT developer guide, "Quantized Types"). Weights use
-127..127, so that the range is symmetric. Scales have the type of the tensor they scale; a scale is rounded *up* to
that type, and the weight is quantized with the rounded scale, so that rounding it clips nothing.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.precision.graph import add_initializer, unique

if TYPE_CHECKING:
    import onnx_ir as ir

QMAX = 127.0
FloatArray = npt.NDArray[np.float32]


def quantize(x: FloatArray, scale: FloatArray | float) -> npt.NDArray[np.int8]:
    """INT8 codes of `x` under `scale` (broadcast), by round-half-even and saturation to [-128, 127]."""
    codes = np.rint(np.asarray(x, np.float32) / np.asarray(scale, np.float32))
    return np.clip(codes, -128, 127).astype(np.int8)


def round_scale(scale: FloatArray, dtype: ir.DataType) -> FloatArray:
    """The smallest positive values of `dtype` that are not below `scale`, as float32."""
    import ml_dtypes
    import onnx_ir as ir

    narrow = {ir.DataType.FLOAT16: np.float16, ir.DataType.BFLOAT16: ml_dtypes.bfloat16}.get(dtype)
    if narrow is None:
        return np.asarray(np.maximum(scale, np.finfo(np.float32).tiny), np.float32)
    rounded = scale.astype(narrow)
    bits = rounded.view(np.uint16) + ((rounded.astype(np.float32) < scale) | (rounded == 0)).astype(np.uint16)
    return np.asarray(bits.view(narrow), np.float32)


def channel_scales(weight: FloatArray, axis: int) -> FloatArray:
    """amax / 127 of each channel along `axis`; float32 [channels]."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(np.abs(weight).max(axis=others) / QMAX, np.float32)


def quantize_activation(graph: ir.Graph, value: ir.Value, scale: float, taken: set[str]) -> ir.Value:
    """Insert Q -> DQ behind `value` (float32, float16 or bfloat16) and return the dequantized value.

    `taken` are the names in use in the graph; the new ones are added.
    """
    import onnx_ir as ir

    dtype = value.dtype or ir.DataType.FLOAT
    rounded = round_scale(np.array([scale], np.float32), dtype).reshape(())
    parts = ("scale", "zero_point", "int8", "dq", "QuantizeLinear", "DequantizeLinear")
    name = {part: unique(f"{value.name}/{part}", taken) for part in parts}
    number = _scale(graph, name["scale"], rounded, dtype)
    zero = add_initializer(graph, name["zero_point"], np.zeros((), np.int8), ir.DataType.INT8)
    codes = ir.Value(name=name["int8"], type=ir.TensorType(ir.DataType.INT8), shape=value.shape)
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


def quantize_weight(node: ir.Node, value: ir.Value, weight: FloatArray, axis: int, taken: set[str]) -> ir.Value:
    """Store `weight` as INT8, one scale a channel of `axis`, and return its dequantized value of `value`'s type.

    `value` is the initializer that `node` reads now; `weight` holds its FP32 values; `taken` are the names in use.
    """
    import onnx_ir as ir

    graph, dtype = node.graph, value.dtype or ir.DataType.FLOAT
    assert isinstance(graph, ir.Graph)
    scales = round_scale(channel_scales(weight, axis), dtype)
    shape = [1] * weight.ndim
    shape[axis] = -1
    parts = ("int8", "scale", "zero_point", "dq", "DequantizeLinear")
    name = {part: unique(f"{value.name}/{part}", taken) for part in parts}
    codes = add_initializer(graph, name["int8"], quantize(weight, scales.reshape(shape)), ir.DataType.INT8)
    number = _scale(graph, name["scale"], scales, dtype)
    zero = add_initializer(graph, name["zero_point"], np.zeros(scales.shape, np.int8), ir.DataType.INT8)
    result = ir.Value(name=name["dq"], type=ir.TensorType(dtype), shape=value.shape)
    dequantize = ir.node(
        "DequantizeLinear", [codes, number, zero], {"axis": axis}, outputs=[result], name=name["DequantizeLinear"]
    )
    graph.insert_before(node, dequantize)
    return result


def _scale(graph: ir.Graph, name: str, scale: FloatArray, dtype: ir.DataType) -> ir.Value:
    import ml_dtypes
    import onnx_ir as ir

    kind = {ir.DataType.FLOAT16: np.float16, ir.DataType.BFLOAT16: ml_dtypes.bfloat16}.get(dtype, np.float32)
    return add_initializer(graph, name, np.asarray(scale).astype(kind), dtype)
