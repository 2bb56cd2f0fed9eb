"""The arithmetic of quantization compared with plain Python, and the Q/DQ pairs that are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trtopt.engine.onnxruntime import open_runner
from trtopt.formats import INT8
from trtopt.graph.query import names
from trtopt.precision.fp8 import FORMAT as FP8
from trtopt.precision.passes.qdq import (
    Format,
    code_weight,
    quantize,
    quantize_activation,
    quantize_weight,
    round_scale,
    rounding_error,
)

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]
F32 = np.float32
NARROW = {ir.DataType.FLOAT16: np.float16, ir.DataType.BFLOAT16: ml_dtypes.bfloat16, ir.DataType.FLOAT: np.float32}

values = st.floats(-1e4, 1e4, width=32)
scales = st.floats(2.0**-20, 100, width=32)


def literal(x: float, scale: float) -> int:
    """Return clip(round half to even(x / scale)); Python's `round` of a float is half-to-even."""
    return max(-128, min(127, round(float(F32(x) / F32(scale)))))


@given(x=values, scale=scales)
@example(x=0.5, scale=1.0)
@example(x=1.5, scale=1.0)
@example(x=-2.5, scale=1.0)
@example(x=127.5, scale=1.0)
@example(x=-128.5, scale=1.0)
@example(x=1e4, scale=1.0)
@example(x=-1e4, scale=1.0)
def test_quantize_is_the_literal_formula(x: float, scale: float) -> None:
    code = quantize(np.array([x], F32), scale)
    assert code.dtype == np.int8
    assert code.tolist() == [literal(x, scale)]


def test_ties_go_to_even_and_the_ends_saturate() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.49, 200, -128.5, -200, np.inf, -np.inf], F32)
    assert quantize(x, 1.0).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 127, -128]


@pytest.mark.parametrize("format", [INT8, FP8], ids=lambda format: format.name)
@given(x=st.floats(-1000, 1000, width=32), scale=st.floats(2.0**-7, 8, width=32))
def test_rounding_error_is_what_quantizing_adds_to_a_value_that_is_not_clipped(
    x: float, scale: float, format: Format
) -> None:
    value = np.array([x], F32)
    error = rounding_error(value, scale, format)[0]
    back = (quantize(value, scale, format).astype(F32) * F32(scale))[0]
    lowest = -128 if format is INT8 else -format.max
    inside = lowest * scale <= x <= format.max * scale
    assert error == pytest.approx(back - value[0] if inside else 0, abs=1e-4 * scale)


@pytest.mark.parametrize("dtype", NARROW)
@given(scale=st.floats(2.0**-149, 60000, width=32))
@example(scale=2.0**-149)
@example(scale=2.0**-24)
@example(scale=2.0**-25)
@example(scale=60000.0)
@example(scale=1.0 + 2.0**-11)
def test_round_scale_is_the_next_value_of_the_type(dtype: ir.DataType, scale: float) -> None:
    rounded = round_scale(np.array([scale], F32), dtype)
    assert rounded.dtype == F32
    assert rounded[0] >= F32(scale)
    assert rounded[0] > 0
    narrow = rounded.astype(NARROW[dtype])
    assert narrow.astype(F32)[0] == rounded[0]  # it is a value of the type
    if dtype is not ir.DataType.FLOAT:
        below = (narrow.view(np.uint16) - np.uint16(1)).view(narrow.dtype).astype(F32)[0]
        assert below < F32(scale)  # and the smallest such


@pytest.mark.parametrize("dtype", NARROW)
def test_a_scale_of_zero_becomes_positive(dtype: ir.DataType) -> None:
    assert (round_scale(np.zeros(3, F32), dtype) > 0).all()


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("times", [1.0001, 1.001, 1.003])
def test_a_scale_beyond_the_type_becomes_its_largest_value(dtype: ir.DataType, times: float) -> None:
    largest = float(ml_dtypes.finfo(NARROW[dtype]).max)
    assert round_scale(np.array([largest * times, largest, 1.0], F32), dtype).tolist() == [largest, largest, 1.0]


@given(amax=st.floats(2.0**-16, 1e4, width=32), fraction=st.integers(0, 1000))
def test_a_scale_rounded_to_fp16_clips_nothing(amax: float, fraction: int) -> None:
    scale = round_scale(np.array([amax / INT8.max], F32), ir.DataType.FLOAT16)[0]
    assert Fraction(float(F32(amax))) <= Fraction(float(scale)) * 127 * (1 + Fraction(1, 2**22))
    x = F32(amax * fraction / 1000)
    assert abs(float(quantize(np.array([x], F32), scale)[0]) * float(scale) - float(x)) <= float(scale) * 0.5001


@given(axis=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_weight_has_one_scale_per_channel_of_the_axis(axis: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(2, 3, 4, 5)).astype(F32)
    scales = code_weight(weight, axis, ir.DataType.FLOAT).scales
    assert scales.size == weight.shape[axis]
    for channel, scale in enumerate(scales.reshape(-1)):
        assert math.isclose(scale * 127, np.abs(weight.take(channel, axis)).max(), rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_becomes_int8_codes_and_a_dequantize(
    parse: Parse, write: Write, dtype: ir.DataType, axis: int
) -> None:
    model = parse("(float[n, 4] x) => (float[n, 6] y) { y = MatMul(x, w) }", {"w": (4, 6)}, 21)
    node, value = model.graph[0], model.graph.initializers["w"]
    assert value.const_value is not None
    weight = value.const_value.numpy().copy()
    weight[:, 2] = 0  # a dead channel
    weight[3, :] = 0
    value.dtype = dtype
    result = quantize_weight(node, value, code_weight(weight, axis, dtype), axis, names(model.graph))
    assert result.dtype == dtype
    dequantize = result.producer()
    assert dequantize is not None
    assert dequantize.attributes["axis"].as_int() == axis
    codes, scale, zero = (v.const_value.numpy() for v in dequantize.inputs if v is not None and v.const_value)
    assert (codes.dtype, zero.dtype) == (np.int8, np.int8)
    assert scale.shape == zero.shape == (weight.shape[axis],)
    assert not zero.any()
    assert np.abs(codes.astype(int)).max() == 127  # symmetric: never -128
    scale = scale.astype(F32)
    assert (scale > 0).all()
    scale = scale[:, None] if axis == 0 else scale
    assert (np.abs(codes * scale - weight) <= scale / 2 * 1.001).all()


def test_an_activation_gets_a_pair_with_constant_scale_and_zero_point_0(parse: Parse, write: Write) -> None:
    model = parse("(float[4] x) => (float[4] y) { y = Neg(x) }")
    result = quantize_activation(model.graph.inputs[0], 0.5, names(model.graph))
    model.graph[-1].replace_input_with(0, result)
    path = write(model)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["QuantizeLinear", "DequantizeLinear", "Neg"]
    x = np.array([0.25, 0.75, -0.75, 1000], F32)  # two ties, and one beyond the range
    assert open_runner(path).run({"x": x})["y"].tolist() == [0.0, -1.0, 1.0, -63.5]


def test_onnxruntime_quantizes_as_trtopt_does(parse: Parse, write: Write) -> None:
    model = parse("(float[512] x) => (float[512] y) { y = Neg(x) }")
    scale = 0.037
    result = quantize_activation(model.graph.inputs[0], scale, names(model.graph))
    model.graph[-1].replace_input_with(0, result)
    halves = (np.arange(512) - 256 + 0.5).astype(F32) * F32(scale)  # ties, as far as division allows
    want = -(quantize(halves, scale).astype(F32) * F32(scale))
    assert np.array_equal(open_runner(write(model)).run({"x": halves})["y"], want)
