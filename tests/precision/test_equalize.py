"""Equalization: the same FP32 function, with channels of similar range, at no cost at run time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.precision.equalize import SUFFIX, equalize, links

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]

IMAGE = "(float[n, 6, 8, 8] x) => (float[n, 8, 8, 8] y)"
ROW = "(float[n, 6] x) => (float[n, 8] y)"
NETS = {
    "conv relu conv": (
        f"{IMAGE} {{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }}",
        {"w": (10, 6, 1, 1), "b": (10,), "v": (8, 10, 1, 1)},
    ),
    "conv without bias, pool": (
        f"{IMAGE} {{ a = Conv(x, w) p = MaxPool<kernel_shape=[1,1]>(a) y = Conv(p, v) }}",
        {"w": (10, 6, 1, 1), "v": (8, 10, 1, 1)},
    ),
    "into a depthwise conv": (
        f"{IMAGE} {{ a = Conv(x, w, b) y = Conv<group=8>(a, v) }}",
        {"w": (8, 6, 1, 1), "b": (8,), "v": (8, 1, 1, 1)},
    ),
    "out of a grouped conv into a grouped conv": (
        f"{IMAGE} {{ a = Conv<group=2>(x, w, b) y = Conv<group=4>(a, v) }}",
        {"w": (12, 3, 1, 1), "b": (12,), "v": (8, 3, 1, 1)},
    ),
    "a scalar factor and addend behind what cannot be scaled": (
        f"{IMAGE} {{ h = HardSwish(x) m = Mul(f, h) a = Add(m, c) y = Conv(a, v) }}",
        {"f": (1,), "c": (1,), "v": (8, 6, 1, 1)},
    ),
    "a divisor": (
        f"{IMAGE} {{ h = HardSwish(x) m = Div(h, f) y = Conv(m, v) }}",
        {"f": (1, 6, 1, 1), "v": (8, 6, 1, 1)},
    ),
    "gemm relu gemm": (
        f"{ROW} {{ a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm(r, v, c) }}",
        {"w": (10, 6), "b": (10,), "v": (10, 8), "c": (8,)},
    ),
    "gemm not transposed": (
        f"{ROW} {{ a = Gemm(x, w, b) y = Gemm<transB=1>(a, v) }}",
        {"w": (6, 10), "b": (10,), "v": (8, 10)},
    ),
    "matmul add matmul": (
        f"{ROW} {{ a = MatMul(x, w) s = Add(a, b) y = MatMul(s, v) }}",
        {"w": (6, 10), "b": (10,), "v": (10, 8)},
    ),
    "layer norm": (
        f"{ROW} {{ a = LayerNormalization<axis=-1>(x, w, b) y = MatMul(a, v) }}",
        {"w": (6,), "b": (6,), "v": (6, 8)},
    ),
}
LEFT_ALONE = {
    "a second reader": (
        f"{ROW} {{ a = MatMul(x, w) r = Relu(a) s = MatMul(r, v) t = ReduceMax(r) y = Add(s, t) }}",
        {"w": (6, 10), "v": (10, 8)},
    ),
    "a graph output": (
        "(float[n, 6] x) => (float[n, 8] y, float[n, 10] a) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": (6, 10), "v": (10, 8)},
    ),
    "a sigmoid": (f"{ROW} {{ a = MatMul(x, w) s = Sigmoid(a) y = MatMul(s, v) }}", {"w": (6, 10), "v": (10, 8)}),
    "the input itself": (f"{ROW} {{ y = MatMul(x, v) }}", {"v": (6, 8)}),
    "an addend along another axis": (
        f"{IMAGE} {{ a = Conv(x, w) s = Add(a, b) y = Conv(s, v) }}",
        {"w": (10, 6, 1, 1), "b": (1, 1, 8, 8), "v": (8, 10, 1, 1)},
    ),
}


def peaks(model: ir.Model, path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """Largest magnitude of each channel of each activation that can be equalized."""
    found = {}
    for link in links(model.graph):
        copy = ir.load(path)
        value = next(v for node in copy.graph for v in node.outputs if v.name == link.tensor)
        copy.graph.outputs.append(value)
        ir.save(copy, path.with_name("tap.onnx"))
        array = np.abs(open_runner(path.with_name("tap.onnx")).run({"x": x})[link.tensor])
        found[link.tensor] = array.max(axis=tuple(i for i in range(array.ndim) if i != link.axis)).astype(np.float64)
    return found


OUTPUT_AXIS = {
    "a divisor": 1,
    "gemm not transposed": 1,
    "matmul add matmul": 1,
}
"""Where the first weight of a net has its output channels; 0 for the others."""


@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_the_same_and_the_ranges_come_together(name: str, parse: Parse, write: Write) -> None:
    body, weights = NETS[name]
    model = parse(body, weights, opset=19)
    first = model.graph.initializers[next(iter(weights))]
    assert first.const_value is not None
    array = np.array(first.const_value.numpy())
    if array.size > 1:  # make the channels differ, by a factor of 40
        rows = np.moveaxis(array, OUTPUT_AXIS.get(name, 0), -1)
        rows *= np.geomspace(0.5, 20, rows.shape[-1], dtype=np.float32)
        first.const_value = ir.tensor(array, name=first.name)
    path = write(model)
    x = np.random.default_rng(1).normal(size=(16, 6, 8, 8) if "8, 8]" in body else (900, 6)).astype(np.float32)
    if "HardSwish" in body:
        x *= np.geomspace(0.1, 30, 6, dtype=np.float32).reshape(1, 6, 1, 1)
    wanted = open_runner(path).run({"x": x})["y"]
    before = peaks(model, path, x)
    assert len(before) == 1
    assert equalize(model, links(model.graph), before) == list(before)
    assert np.allclose(open_runner(write(model)).run({"x": x})["y"], wanted, rtol=1e-4, atol=1e-5)
    after = peaks(model, write(model), x)
    ratio = {name: peak.max() / peak.min() for group in (before, after) for name, peak in group.items()}
    old, new = next(iter(before)), next(iter(after))
    assert new == old + SUFFIX
    assert ratio[new] < ratio[old]
    if "depthwise" in name:
        assert ratio[new] < 1.001


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_absorb_the_division_is_left_alone(name: str, parse: Parse) -> None:
    body, weights = LEFT_ALONE[name]
    assert links(parse(body, weights).graph) == []


def test_a_silent_channel_is_not_stretched_without_bound(parse: Parse, write: Write) -> None:
    model = parse(f"{ROW} {{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }}", {"w": (6, 10), "v": (10, 8)})
    seen = np.ones(10)
    seen[3] = 0.0
    equalize(model, links(model.graph), {"r": seen})
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        assert np.isfinite(value.const_value.numpy()).all()
    write(model)


def test_activations_that_were_never_alive_are_left_alone(parse: Parse) -> None:
    model = parse(f"{ROW} {{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }}", {"w": (6, 10), "v": (10, 8)})
    assert equalize(model, links(model.graph), {"r": np.zeros(10)}) == []
