"""The simulation of 16-bit arithmetic compared with numpy: FP32 compute, one rounding per node, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.prepare import check_types, infer_shapes, save
from trtopt.graph.simulate import simulate
from trtopt.precision import Request, precision

F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16
RNG = np.random.default_rng(5)
W = RNG.normal(size=(8, 8)).astype(F32)
SCALE = RNG.normal(size=8).astype(F32)
SHIFT = RNG.normal(size=8).astype(F32)
X = RNG.normal(size=(16, 8)).astype(F32)
CHAIN = "(float[n, 8] x) => (float[n, 8] y) { m = MatMul(x, w)\n s = Mul(m, k)\n t = Sigmoid(s)\n y = Add(t, b) }"
Typed = Callable[..., Path]


@pytest.fixture
def typed(tmp_path: Path) -> Typed:
    """Return a function `typed(body, name, **ranges)` that writes a typed graph and returns its path."""

    def typed(body: str, name: str = "fp16", **ranges: float) -> Path:
        model = ir.from_proto(text(body))
        infer_shapes(model)
        precision(name).apply(model, Request(ranges=ranges))
        save(model, tmp_path / "typed.onnx")
        check_types(tmp_path / "typed.onnx")
        return tmp_path / "typed.onnx"

    return typed


def text(body: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 22]> g {body}')
    for name, array in {"w": W, "k": SCALE, "b": SHIFT}.items():
        if any(name in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return proto


def run(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    return open_runner(path).run({"x": x})


def rounded(array: np.ndarray, kind: type) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(kind).astype(F32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return onnxruntime's FP32 sigmoid: numpy's differs in the last bit, which these tests do not cover."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 22]> g (float[n, m] x) => (float[n, m] y) { y = Sigmoid(x) }'
    )
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def chain(x: np.ndarray, kind: type) -> np.ndarray:
    """Return the result of the chain if every tensor has the type `kind` and every node rounds once."""
    x, w, k, b = (rounded(array, kind) for array in (x, W, SCALE, SHIFT))
    m = rounded(x @ w, kind)
    s = rounded(m * k, kind)
    t = rounded(sigmoid(s), kind)
    return rounded(t + b, kind)


@pytest.mark.parametrize(("name", "kind"), [("fp16", F16), ("bf16", BF16)])
def test_every_node_rounds_once_bit_for_bit(typed: Typed, name: str, kind: type) -> None:
    x = (X * 8).round().astype(F32) / 8  # few bits, so that the order in which a product is summed does not matter
    weights = {"w": (W * 8).round() / 8}
    path = typed(CHAIN, name)
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("w_"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights["w"].astype(kind), tensor.name))
    onnx.save(proto, path)
    m = rounded(x @ weights["w"].astype(F32), kind)
    s = rounded(m * rounded(SCALE, kind), kind)
    want = rounded(rounded(sigmoid(s), kind) + rounded(SHIFT, kind), kind)
    assert np.array_equal(run(path, x)["y"], want)


@pytest.mark.parametrize(("name", "kind"), [("fp16", F16), ("bf16", BF16)])
def test_results_match_numpy_on_ordinary_numbers(typed: Typed, name: str, kind: type) -> None:
    got, want = run(typed(CHAIN, name), X)["y"], chain(X, kind)
    step = np.spacing(np.abs(want).astype(kind)).astype(F32)  # sums in another order may round differently
    assert (np.abs(got - want) <= 2 * step).all()
    assert (got == want).mean() > 0.95


def test_onnxruntime_alone_would_not_round_between_the_nodes(typed: Typed) -> None:
    path = typed(CHAIN)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    alone, want = session.run(None, {"x": X})[0], chain(X, F16)
    assert (run(path, X)["y"] == want).mean() > (alone == want).mean()


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_the_casts_survive_every_optimization_level(typed: Typed, tmp_path: Path, level: str) -> None:
    model = ir.load(typed(CHAIN))
    assert simulate(model)
    save(model, tmp_path / "simulated.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    session = ort.InferenceSession(str(tmp_path / "simulated.onnx"), options, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": X})[0], run(tmp_path / "typed.onnx", X)["y"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    to = [a.i for n in nodes if n.op_type == "Cast" for a in n.attribute if a.name == "to"]
    down = [kind for kind in to if kind == onnx.TensorProto.FLOAT16]
    assert len(down) == 5  # the input and each of the four results


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.lists(st.floats(-300, 300, width=32), min_size=8, max_size=8))
def test_elementwise_results_equal_those_of_numpy(typed: Typed, x: list[float]) -> None:
    feed = np.array([x], F32)
    half = rounded(feed, F16)
    want = rounded(rounded(half * half, F16) + rounded(SHIFT, F16), F16)
    path = typed("(float[n, 8] x) => (float[n, 8] y) { s = Mul(x, x)\n y = Add(s, b) }")
    assert np.array_equal(run(path, feed)["y"], want)


def test_fp16_overflows_to_infinity_as_it_does_on_a_gpu(typed: Typed) -> None:
    path = typed("(float[n, 8] x) => (float[n, 8] y) { s = Mul(x, x)\n y = Neg(s) }")
    assert np.isneginf(run(path, np.full((1, 8), 300, F32))["y"]).all()


def test_bf16_does_not_overflow_where_fp16_does(typed: Typed) -> None:
    path = typed("(float[n, 8] x) => (float[n, 8] y) { s = Mul(x, x)\n y = Neg(s) }", "bf16")
    assert np.array_equal(run(path, np.full((1, 8), 300, F32))["y"], -rounded(np.full((1, 8), 9e4, F32), BF16))


def test_operators_that_only_move_values_are_not_rounded_again(typed: Typed) -> None:
    model = ir.load(typed("(float[n, 8] x) => (float[8, n] y) { r = Relu(x)\n t = Transpose(r)\n e = Exp(t)\n"
                          "y = Abs(e) }"))  # fmt: skip
    simulate(model)
    low = [node.inputs[0] for node in model.graph if node.name and node.name.endswith("rounded_16/Cast")]
    assert [value.name for value in low if value is not None] == ["x_fp16", "e"]


def test_nodes_in_fp32_are_unchanged(typed: Typed) -> None:
    path = typed("(float[n, 8] x) => (float[n, 8] y) <float big = {1e5}> { m = Mul(x, big)\n y = Div(m, big) }")
    model = ir.load(path)
    assert not simulate(model)
    assert [node.op_type for node in model.graph] == ["Mul", "Div"]
    assert np.array_equal(run(path, X)["y"], (X * F32(1e5)) / F32(1e5))


def test_a_graph_without_16_bit_types_is_unchanged() -> None:
    model = ir.from_proto(text(CHAIN))
    infer_shapes(model)
    assert not simulate(model)
    assert [node.name for node in model.graph] == ["m", "s", "t", "y"]


@pytest.mark.parametrize("scale", [0.0625, 0.037])
def test_quantized_values_equal_those_of_numpy_including_ties(tmp_path: Path, scale: float) -> None:
    half = F16(scale)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 22]> g (float[n] x) => (float[n] y) <int8 z = {0}> {'
        "h = Cast<to = 10>(x)\n q = QuantizeLinear(h, s, z)\n d = DequantizeLinear(q, s, z)\n y = Cast<to = 1>(d) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(half), "s"))
    onnx.save(proto, tmp_path / "m.onnx")
    x = ((np.arange(600) - 300) / 2).astype(F32) * F32(half)
    codes = np.clip(np.rint(rounded(x, F16) / F32(half)), -128, 127)
    assert np.array_equal(run(tmp_path / "m.onnx", x)["y"], codes * F32(half))


def test_dequantized_int8_is_not_rounded_before_a_multiplication(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 22]> g (int8[n, 8] x) => (float[n, 8] y) <int8 z = {0}> {'
        "d = DequantizeLinear(x, s, z)\n m = MatMul(d, one)\n y = Cast<to = 1>(m) }"
    )
    for name, array in {"s": np.array(F16(0.037)), "one": np.eye(8, dtype=F16)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.integers(-128, 128, (4, 8)).astype(np.int8)
    want = rounded(x.astype(F32) * F32(F16(0.037)), F16)  # only the product is rounded
    assert np.array_equal(run(tmp_path / "m.onnx", x)["y"], want)


def test_the_output_dtype_of_a_dequantize_is_widened(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["": 23]> g (int8[n, 8] x) => (float16[n, 8] y) <float s = {0.5}, int8 z = {0}>'
        "{ d = DequantizeLinear<output_dtype = 10>(x, s, z)\n y = Mul(d, d) }"
    )
    onnx.save(proto, tmp_path / "m.onnx")
    x = np.arange(-8, 8).reshape(2, 8).astype(np.int8)
    assert np.array_equal(run(tmp_path / "m.onnx", x)["y"], (x * F16(0.5)) ** 2)


THIRD_PARTY = {
    "16-bit inputs and outputs": "(float16[n, 8] x) => (float16[n, 8] y) { s = Mul(x, x)\n y = Sigmoid(s) }",
    "constant nodes": "(float16[n, 8] x) => (float16[n, 8] y)"
    "{ c = Constant<value = float16[1] {15360}>()\n s = Mul(x, x)\n a = Mul(s, c)\n y = Sigmoid(a) }",
    "an output that is read again": "(float16[n, 8] x) => (float16[n, 8] s, float16[n, 8] y)"
    "{ s = Mul(x, x)\n y = Sigmoid(s) }",
    "a body": "(float16[n, 8] x) => (float16[n, 8] y) <bool yes = {1}> { s = Mul(x, x)\n y = If(yes)<"
    "then_branch = p () => (float16[n, 8] a) { a = Sigmoid(s) },"
    "else_branch = q () => (float16[n, 8] b) { b = Neg(s) }> }",
    "a type that is an attribute": "(float16[n, 8] x) => (float16[n, 8] y)"
    "{ q = Mul(x, x)\n e = EyeLike<dtype = 10>(q)\n none = Sub(e, e)\n s = Add(q, none)\n y = Sigmoid(s) }",
    "a cast to the type of another": "(float16[n, 8] x) => (float16[n, 8] y)"
    "{ f = Cast<to = 1>(x)\n g = Mul(f, f)\n s = CastLike(g, x)\n y = Sigmoid(s) }",
}


@pytest.mark.parametrize("body", THIRD_PARTY.values(), ids=THIRD_PARTY)
def test_16_bit_models_of_other_tools_keep_their_types_and_are_rounded(tmp_path: Path, body: str) -> None:
    onnx.save(text(body), tmp_path / "m.onnx")
    check_types(tmp_path / "m.onnx")
    runner = open_runner(tmp_path / "m.onnx")
    assert "16-bit rounding simulated" in runner.where
    got = runner.run({"x": X.astype(F16)})["y"]
    assert got.dtype == F16
    s = rounded(rounded(X, F16) ** 2, F16)
    assert np.array_equal(got.astype(F32), rounded(sigmoid(s), F16))


def test_the_state_of_a_loop_is_rounded_in_every_iteration(tmp_path: Path) -> None:
    body = """(float16[n, 8] x) => (float16[n, 8] y) <int64 m = {5}, bool go = {1}> {
        y = Loop(m, go, x)<body = b (int64 i, bool c, float16[n, 8] s) => (bool d, float16[n, 8] t) {
            d = Identity(c)\n t = Mul(s, x) }> }"""
    onnx.save(text(body), tmp_path / "m.onnx")
    state = rounded(X, F16)
    for _ in range(5):
        state = rounded(state * rounded(X, F16), F16)
    assert np.array_equal(open_runner(tmp_path / "m.onnx").run({"x": X.astype(F16)})["y"].astype(F32), state)


def test_an_input_that_is_an_output_passes_through(tmp_path: Path) -> None:
    onnx.save(text("(float16[n, 8] x) => (float16[n, 8] x, float16[n, 8] y) { y = Mul(x, x) }"), tmp_path / "m.onnx")
    got = open_runner(tmp_path / "m.onnx").run({"x": X.astype(F16)})
    assert np.array_equal(got["x"], X.astype(F16))
