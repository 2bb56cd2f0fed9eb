"""Bias correction: every output channel of a quantized layer has the mean that it has in FP32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.precision import Request, precision
from trtopt.types import CalibrationTable

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]
F32 = np.float32

NETS = {
    "conv with a bias": ("(float[n, 16, 1, 1] x) => (float[n, 24, 1, 1] y) { y = Conv(x, w, b) }", (24, 16, 1, 1)),
    "conv without a bias": ("(float[n, 16, 1, 1] x) => (float[n, 24, 1, 1] y) { y = Conv(x, w) }", (24, 16, 1, 1)),
    "grouped conv": ("(float[n, 32, 1, 1] x) => (float[n, 24, 1, 1] y) { y = Conv<group=4>(x, w) }", (24, 8, 1, 1)),
    "gemm": ("(float[n, 16] x) => (float[n, 24] y) { y = Gemm<transB=1>(x, w, b) }", (24, 16)),
    "gemm not transposed": ("(float[n, 16] x) => (float[n, 24] y) { y = Gemm(x, w, b) }", (16, 24)),
    "matmul and add": ("(float[n, 16] x) => (float[n, 24] y) { z = MatMul(x, w) y = Add(z, b) }", (16, 24)),
}


def outputs(
    model: ir.Model, x: np.ndarray, write: Write, means: dict[tuple[str, int], np.ndarray] | None
) -> np.ndarray:
    scale = float(np.abs(x).max()) / 127
    table = CalibrationTable(method="minmax", scales={"x": scale})
    decisions = precision("int8").apply(model, Request(rest="fp32", table=table, means=means or {}))
    assert any("corrects the mean quantization error" in decision.reason for decision in decisions) == bool(means)
    return np.asarray(open_runner(write(model)).run({"x": x})["y"])


@pytest.mark.parametrize("name", NETS)
def test_the_mean_error_of_each_channel_is_removed(name: str, parse: Parse, write: Write) -> None:
    body, shape = NETS[name]
    weights = {"w": shape} | ({"b": (24,)} if ", b)" in body else {})
    model = parse(body, weights)
    inputs = 32 if "group" in body else 16
    x = (np.random.default_rng(0).normal(size=(200, inputs)) + 3).astype(F32)
    x = x.reshape(x.shape + (1,) * (len(shape) - 2))
    # Inputs that INT8 represents exactly, so that the only error is that of the weights.
    scale = F32(np.abs(x).max() / 127)
    x = np.rint(x / scale).astype(F32) * scale
    expected = np.asarray(open_runner(write(model)).run({"x": x})["y"])
    mean = x.mean(axis=tuple(i for i in range(x.ndim) if i != 1), dtype=np.float64)
    plain_error = outputs(parse(body, weights), x, write, None) - expected
    corrected_error = outputs(parse(body, weights), x, write, {("x", -1 if len(shape) == 2 else 1): mean}) - expected
    assert np.abs(plain_error.mean(axis=0)).max() > 1e-3
    assert np.abs(corrected_error.mean(axis=0)).max() < 1e-4
    assert (corrected_error**2).sum() < (plain_error**2).sum()


def test_a_product_without_a_bias_is_not_corrected(parse: Parse, write: Write) -> None:
    model = parse("(float[n, 16] x) => (float[n, 24] y) { y = MatMul(x, w) }", {"w": (16, 24)})
    table = CalibrationTable(method="minmax", scales={"x": 0.1})
    decisions = precision("int8").apply(model, Request(rest="fp32", table=table, means={("x", -1): np.ones(16)}))
    assert [decision.reason for decision in decisions] == ["a weighted operator"]
    write(model)


def test_a_bias_shared_by_two_layers_is_corrected_for_each(parse: Parse, write: Write) -> None:
    body = """(float[n, 16] x) => (float[n, 24] y, float[n, 24] z)
        { y = Gemm<transB=1>(x, w, b) z = Gemm<transB=1>(x, v, b) }"""
    model = parse(body, {"w": (24, 16), "v": (24, 16), "b": (24,)})
    table = CalibrationTable(method="minmax", scales={"x": 0.1})
    precision("int8").apply(model, Request(rest="fp32", table=table, means={("x", -1): np.ones(16)}))
    first, second = (node.inputs[2].const_value.numpy() for node in model.graph if node.op_type == "Gemm")
    assert not np.array_equal(first, second)
    write(model)
