"""Equalization leaves the FP32 function unchanged and makes the ranges of the channels similar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trtopt.calibrate.ranges import Channels
from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.query import constant
from trtopt.precision.passes.equalize import equalize
from trtopt.precision.passes.pairs import links
from trtopt.precision.passes.smoothing import MAX_RATIO, WAYS
from trtopt.types import EQUALIZED

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]

IMAGE = "(float[n, 16, 8, 8] x) => (float[n, 24, 8, 8] y)"
ROW = "(float[n, 16] x) => (float[n, 24] y)"
NETS = {
    "conv relu conv": (
        f"{IMAGE} {{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }}",
        {"w": (20, 16, 1, 1), "b": (20,), "v": (24, 20, 1, 1)},
    ),
    "conv without bias, pool": (
        f"{IMAGE} {{ a = Conv(x, w) p = MaxPool<kernel_shape=[1,1]>(a) y = Conv(p, v) }}",
        {"w": (20, 16, 1, 1), "v": (24, 20, 1, 1)},
    ),
    "conv, mean over all pixels": (
        "(float[n, 16, 8, 8] x) => (float[n, 24] y) <int64[2] axes = {2, 3}> "
        "{ a = Conv(x, w, b) p = ReduceMean<keepdims=0>(a, axes) y = Gemm(p, v) }",
        {"w": (20, 16, 1, 1), "b": (20,), "v": (20, 24)},
    ),
    "into a depthwise conv": (
        f"{IMAGE} {{ a = Conv(x, w, b) c = Conv<group=24>(a, v) y = Conv(c, u) }}",
        {"w": (24, 16, 1, 1), "b": (24,), "v": (24, 1, 1, 1), "u": (24, 24, 1, 1)},
    ),
    "out of a grouped conv into a grouped conv": (
        f"{IMAGE} {{ a = Conv<group=2>(x, w, b) y = Conv<group=4>(a, v) }}",
        {"w": (24, 8, 1, 1), "b": (24,), "v": (24, 6, 1, 1)},
    ),
    "a scalar factor and addend after an operator that cannot be scaled": (
        f"{IMAGE} {{ h = HardSwish(x) m = Mul(f, h) a = Add(m, c) y = Conv(a, v) }}",
        {"f": (1,), "c": (1,), "v": (24, 16, 1, 1)},
    ),
    "a divisor": (
        f"{IMAGE} {{ h = HardSwish(x) m = Div(h, f) y = Conv(m, v) }}",
        {"f": (1, 16, 1, 1), "v": (24, 16, 1, 1)},
    ),
    "gemm relu gemm": (
        f"{ROW} {{ a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm(r, v, c) }}",
        {"w": (20, 16), "b": (20,), "v": (20, 24), "c": (24,)},
    ),
    "gemm not transposed": (
        f"{ROW} {{ a = Gemm(x, w, b) y = Gemm<transB=1>(a, v) }}",
        {"w": (16, 20), "b": (20,), "v": (24, 20)},
    ),
    "matmul add matmul": (
        f"{ROW} {{ a = MatMul(x, w) s = Add(a, b) y = MatMul(s, v) }}",
        {"w": (16, 20), "b": (20,), "v": (20, 24)},
    ),
    "layer norm": (
        f"{ROW} {{ a = LayerNormalization<axis=-1>(x, w, b) y = MatMul(a, v) }}",
        {"w": (16,), "b": (16,), "v": (16, 24)},
    ),
}
LEFT_ALONE = {
    "a second consumer": (
        f"{ROW} {{ a = MatMul(x, w) r = Relu(a) s = MatMul(r, v) t = ReduceMax(r) y = Add(s, t) }}",
        {"w": (16, 20), "v": (20, 24)},
    ),
    "a graph output": (
        "(float[n, 16] x) => (float[n, 24] y, float[n, 20] a) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": (16, 20), "v": (20, 24)},
    ),
    "too few channels to be quantized": (
        "(float[n, 8] x) => (float[n, 24] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }",
        {"w": (8, 8), "v": (8, 24)},
    ),
    "a clip, which TensorRT fuses into INT8 kernels": (
        f"{ROW} {{ a = MatMul(x, w) s = Clip(a, l) y = MatMul(s, v) }}",
        {"w": (16, 20), "l": (), "v": (20, 24)},
    ),
    "a tensor that another operator quantizes, too": (
        f"{ROW} {{ h = HardSwish(x) a = MatMul(h, v) t = Transpose<perm=[1,0]>(h) b = MatMul(t, h) s = ReduceMax(b) "
        "y = Add(a, s) }",
        {"v": (16, 24)},
    ),
    "the input itself": (f"{ROW} {{ y = MatMul(x, v) }}", {"v": (16, 24)}),
    "an addend along another axis": (
        f"{IMAGE} {{ a = Conv(x, w) s = Add(a, b) y = Conv(s, v) }}",
        {"w": (20, 16, 1, 1), "b": (1, 1, 8, 8), "v": (24, 20, 1, 1)},
    ),
}


def channels(model: ir.Model, path: Path, x: np.ndarray) -> dict[str, Channels]:
    """Return the values that `x` gives of each activation that can be equalized."""
    observed = {}
    for link in links(model):
        copy = ir.load(path)
        value = next(v for node in copy.graph for v in node.outputs if v.name == link.name)
        copy.graph.outputs.append(value)
        ir.save(copy, path.with_name("tap.onnx"))
        array = open_runner(path.with_name("tap.onnx")).run({"x": x})[link.name]
        rows = np.moveaxis(array, link.axis, 0).reshape(array.shape[link.axis], -1).astype(np.float64)
        observed[link.name] = Channels(np.abs(rows).max(axis=1), rows)
    return observed


def sample(body: str) -> np.ndarray:
    """Return an input, whose channels have different ranges if the network has no weight that could give them some."""
    x = np.random.default_rng(1).normal(size=(16, 16, 8, 8) if "8, 8]" in body else (900, 16)).astype(np.float32)
    if "HardSwish" in body:
        x *= np.geomspace(0.1, 30, 16, dtype=np.float32).reshape(1, 16, *(1,) * (x.ndim - 2))
    return x


OUTPUT_AXIS = {
    "a divisor": 1,
    "gemm not transposed": 1,
    "matmul add matmul": 1,
}
"""The axis of the output channels in the first weight of a network; 0 for the others."""


@pytest.mark.parametrize("alphas", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_the_same_and_the_ranges_become_similar(
    name: str, alphas: tuple[float, ...], parse: Parse, write: Write
) -> None:
    body, weights = NETS[name]
    model = parse(body, weights, opset=19)
    first = model.graph.initializers[next(iter(weights))]
    assert first.const_value is not None
    array = np.array(first.const_value.numpy())
    if array.size > 1:  # give the channels ranges that differ by a factor of 40
        rows = np.moveaxis(array, OUTPUT_AXIS.get(name, 0), -1)
        rows *= np.geomspace(0.5, 20, rows.shape[-1], dtype=np.float32)
        first.const_value = ir.tensor(array, name=first.name)
    path = write(model)
    x = sample(body)
    expected = open_runner(path).run({"x": x})["y"]
    before = channels(model, path, x)
    assert len(before) == (2 if "depthwise" in name else 1)
    assert equalize(model, links(model), before, alphas) == (list(before), [])
    assert np.allclose(open_runner(write(model)).run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)
    after = channels(model, write(model), x)
    ratio = {name: own.peaks.max() / own.peaks.min() for group in (before, after) for name, own in group.items()}
    old, new = next(iter(before)), next(iter(after))
    assert new == old + EQUALIZED
    assert ratio[new] < ratio[old]
    if "depthwise" in name and alphas != (0.5,):
        assert ratio[new] < max(1.001, 1.001 * ratio[old] / MAX_RATIO)
    assert after[new].peaks.max() == pytest.approx(before[old].peaks.max(), rel=1e-4)


INSERTED = {
    "after a hard-swish": (f"{IMAGE} {{ h = HardSwish(x) y = Conv(h, v, b) }}", {"v": (24, 16, 1, 1), "b": (24,)}),
    "for two weighted consumers of three": (
        f"{ROW} {{ h = HardSwish(x) a = MatMul(h, v) b = MatMul(h, w) t = ReduceMax(h) s = Add(a, b) y = Add(s, t) }}",
        {"v": (16, 24), "w": (16, 24)},
    ),
    "after the last addition of a norm": (
        f"{ROW} {{ h = HardSwish(x) m = Mul(h, h) s = Add(m, c) a = MatMul(s, v) t = ReduceMax(s) y = Add(a, t) }}",
        {"c": (16,), "v": (16, 24)},
    ),
}


def test_no_mul_is_inserted_behind_the_kernel_of_a_depthwise_convolution(parse: Parse) -> None:
    body = f"{IMAGE} {{ c = Conv<group = GROUPS>(x, w) s = Sigmoid(c) m = Mul(c, s) y = Conv(m, v) }}"
    found = {}
    for groups in (1, 16):
        model = parse(
            body.replace("GROUPS", str(groups)), {"w": (16, 16 // groups, 1, 1), "v": (24, 16, 1, 1)}, opset=19
        )
        found[groups] = {link.name for link in links(model)}
    assert found == {1: {"m"}, 16: set()}


NUMBERS = (
    "<float half = {0.5}, float one = {1.0}, float root = {1.4142135}, float three = {3.0}, float six = {6.0}, "
    "float zero = {0.0}, float one_sixth = {0.16666667}, float s = {0.79788456}, float k = {0.044715}>"
)
FORMS = {
    "gelu": (
        "g = Gelu(a)",
        "d = Div(a, root) e = Erf(d) o = Add(e, one) p = Mul(a, o) g = Mul(p, half)",
        "d = Div(a, root) e = Erf(d) o = Add(e, one) h = Mul(half, a) g = Mul(h, o)",
        "d = Div(a, root) e = Erf(d) o = Add(e, one) h = Mul(half, o) g = Mul(a, h)",
        "i = Gelu(a) g = Identity(i)",
    ),
    "gelu by tanh": (
        'g = Gelu<approximate="tanh">(a)',
        "q = Mul(a, a) p = Mul(q, a) w = Mul(p, k) d = Add(a, w) f = Mul(d, s) e = Tanh(f) o = Add(e, one) "
        "h = Mul(half, a) g = Mul(h, o)",
    ),
    "hard-swish": (
        "g = HardSwish(a)",
        "h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(a) g = Mul(a, h)",
        "t = Add(a, three) l = Clip(t, zero, six) p = Mul(a, l) g = Div(p, six)",
        "t = Add(a, three) l = Clip(t, zero, six) h = Div(l, six) g = Mul(a, h)",
        "t = Add(a, three) l = Clip(t, zero, six) p = Mul(a, l) g = Mul(p, one_sixth)",
    ),
    "a norm": (
        "i = MeanVarianceNormalization<axes = [2, 3]>(a) w = Mul(i, m) g = Add(w, c)",
        "g = InstanceNormalization(a, m, c)",
    ),
    "a product": ("o = Sigmoid(a) p = Mul(a, o) g = Mul(p, m)", "o = Sigmoid(a) q = Mul(o, m) g = Mul(a, q)"),
}
"""Functions between two convolutions, in several forms each."""


def equalized_form(between: str, parse: Parse, write: Write) -> np.ndarray:
    """Return the equalized weight of the second convolution.

    The ranges of its channels differ little: equalization gains less than a Mul at any other place must.
    """
    weights = {"u": (20, 16, 1, 1), "v": (24, 20, 1, 1), "m": (1, 20, 1, 1), "c": (1, 20, 1, 1)}
    if "InstanceNormalization" in between:
        weights |= {"m": (20,), "c": (20,)}
    model = parse(f"{IMAGE} {NUMBERS} {{ a = Conv(x, u) {between} y = Conv(g, v) }}", weights, opset=21)
    x = np.random.default_rng(1).normal(size=(16, 16, 8, 8)).astype(np.float32)
    path = write(model)
    expected = open_runner(path).run({"x": x})["y"]
    assert sum(map(len, equalize(model, links(model), channels(model, path, x), WAYS[-1]))) == 1
    assert np.allclose(open_runner(write(model)).run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
    (last,) = (node for node in model.graph if node.outputs[0].name == "y")
    return np.asarray(constant(last.inputs[1]))


@pytest.mark.parametrize(("name", "index"), [(name, i) for name in FORMS for i in range(1, len(FORMS[name]))])
def test_every_form_of_a_function_is_equalized_alike(name: str, index: int, parse: Parse, write: Write) -> None:
    first, other = (equalized_form(FORMS[name][i], parse, write) for i in (0, index))
    assert np.allclose(other, first, rtol=1e-3)


@pytest.mark.parametrize("name", INSERTED)
def test_a_mul_is_inserted_where_no_constant_absorbs_the_division(name: str, parse: Parse, write: Write) -> None:
    body, weights = INSERTED[name]
    model = parse(body, weights)
    x = sample(body)
    expected = open_runner(write(model)).run({"x": x})["y"]
    operators = [node.op_type for node in model.graph]
    assert equalize(model, links(model), channels(model, write(model), x), WAYS[-1])[1] in (["h"], ["s"])
    assert sorted(node.op_type for node in model.graph) == sorted([*operators, "Mul"])
    assert np.allclose(open_runner(write(model)).run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_no_mul_is_inserted_for_channels_of_similar_range(parse: Parse, write: Write) -> None:
    model = parse(f"{IMAGE} {{ h = Sigmoid(x) y = Conv(h, v) }}", {"v": (24, 16, 1, 1)})
    x = np.random.default_rng(1).normal(size=(16, 16, 8, 8)).astype(np.float32)
    assert equalize(model, links(model), channels(model, write(model), x), WAYS[-1]) == ([], [])
    assert [node.op_type for node in model.graph] == ["Sigmoid", "Conv"]


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_an_activation_whose_division_cannot_be_absorbed_is_left_alone(name: str, parse: Parse) -> None:
    body, weights = LEFT_ALONE[name]
    assert links(parse(body, weights)) == []


def test_activations_that_are_all_zero_are_left_alone(parse: Parse) -> None:
    model = parse(f"{ROW} {{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }}", {"w": (16, 20), "v": (20, 24)})
    zeros = {"r": Channels(np.zeros(20), np.zeros((20, 8)))}
    assert equalize(model, links(model), zeros, WAYS[-1]) == ([], [])
