"""Casts to 16 bits: the types are consistent, inputs and outputs keep theirs, and results stay close to FP32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.file import describe
from trtopt.precision import Request, precision
from trtopt.precision.bf16 import FORMAT as BF16
from trtopt.precision.fp16 import FORMAT as FP16
from trtopt.precision.passes import half
from trtopt.types import Decision

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]
Run = Callable[..., tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]
X = np.linspace(-2, 2, 4, dtype=np.float32)


def apply(model: ir.Model, name: str = "fp16", **ranges: float) -> dict[str, Decision]:
    return {decision.node: decision for decision in precision(name).apply(model, Request(ranges=ranges))}


def types(path: Path) -> dict[str, str]:
    """Return the element type of every tensor by name, as ONNX infers it."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    names = {value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in values}
    return names | {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer}


@pytest.fixture
def both(parse: Parse, write: Write, tmp_path: Path) -> Run:
    """Return a function that gives the outputs of a network in FP32, and those of its typed graph.

    Each 16-bit result of the typed graph is rounded.
    """

    def both(body: str, feed: dict[str, np.ndarray], name: str = "fp16", opset: int = 19, **ranges: float):
        model = parse(body, opset=opset)
        ir.save(model, tmp_path / "fp32.onnx")
        apply(model, name, **ranges)
        return open_runner(tmp_path / "fp32.onnx").run(feed), open_runner(write(model)).run(feed)

    return both


@pytest.mark.parametrize(("name", "opset", "dtype"), [("fp16", 19, "FLOAT16"), ("bf16", 22, "BFLOAT16")])
def test_inputs_and_outputs_stay_float32_and_all_tensors_between_are_16_bit(
    parse: Parse, write: Write, name: str, opset: int, dtype: str
) -> None:
    model = parse("(float[n, 4] x) => (float[n, 2] y) { h = MatMul(x, w)\n r = Relu(h)\n y = Add(r, b) }",
                  {"w": (4, 2), "b": (2,)}, opset)  # fmt: skip
    decisions = apply(model, name)
    assert {d.precision for d in decisions.values()} == {name}
    assert {d.reason for d in decisions.values()} == {"requested"}
    path = write(model)
    type_of = types(path)
    assert (type_of["x"], type_of["y"]) == ("FLOAT", "FLOAT")
    assert {type_of["h"], type_of["r"], type_of[f"w_{name}"], type_of[f"b_{name}"]} == {dtype}
    assert "w" not in type_of  # the FP32 copy was removed
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Cast", "MatMul", "Relu", "Add", "Cast"]
    assert describe(path).outputs[0].name == "y"


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_weights_are_rounded_to_nearest_even(parse: Parse, name: str, dtype: type) -> None:
    model = parse("(float[4] x) => (float[4] y) { y = Mul(x, w) }", {"w": (4,)}, 22)
    before = model.graph.initializers["w"].const_value
    assert before is not None
    apply(model, name)
    after = model.graph.initializers[f"w_{name}"].const_value
    assert after is not None
    assert np.array_equal(after.numpy(), before.numpy().astype(dtype))


def test_a_mask_constant_is_clamped_with_a_note(parse: Parse) -> None:
    model = parse("(float[4] x) => (float[4] y) <float m = {-3.4e38}> { a = Add(x, m) y = Softmax(a) }")
    decision = apply(model)["a"]
    assert decision.precision == "fp16"
    assert decision.reason == "its mask constant -3.4e+38 is clamped to -32752"
    mask = model.graph.initializers["m_fp16"].const_value
    assert mask is not None
    assert mask.numpy() == -32752


def test_a_mask_constant_beyond_bf16_is_clamped_with_a_note(parse: Parse) -> None:
    model = parse("(float[4] x) => (float[4] y) <float m = {-3.4028234e38}> { a = Add(x, m) y = Softmax(a) }",
                  opset=22)  # fmt: skip
    assert "is clamped to -1.6948e+38" in apply(model, "bf16")["a"].reason
    mask = model.graph.initializers["m_bf16"].const_value
    assert mask is not None
    assert np.isfinite(mask.numpy().astype(np.float32))


def test_a_mask_constant_in_the_range_of_bf16_gets_no_note(parse: Parse) -> None:
    model = parse("(float[4] x) => (float[4] y) <float m = {-1e9}> { a = Add(x, m) y = Softmax(a) }", opset=22)
    assert apply(model, "bf16")["a"].reason == "requested"


def test_an_observed_mask_beyond_the_range_is_clamped_before_the_cast(
    parse: Parse, write: Write, tmp_path: Path
) -> None:
    model = parse("(float[2, 4] x, float[2, 4] m) => (float[2, 4] y) { a = Add(x, m) y = Softmax(a) }")
    precision("fp16").apply(model, Request(masks={"m": 3.4e38}))
    feed = {"x": np.ones((2, 4), np.float32), "m": np.full((2, 4), -3.4e38, np.float32)}
    np.testing.assert_allclose(open_runner(write(model)).run(feed)["y"], 0.25)


def test_an_infinite_constant_stays_infinite() -> None:
    array = half.to_half(np.array([np.inf, -np.inf, np.nan, 1e9, -1e9], np.float32), FP16)
    np.testing.assert_array_equal(array.astype(np.float32), [np.inf, -np.inf, np.nan, 32752, -32752])


def test_the_limits_are_those_of_the_types() -> None:
    for half_type, numpy_type in ((FP16, np.float16), (BF16, ml_dtypes.bfloat16)):
        info = ml_dtypes.finfo(numpy_type)
        assert half_type.max == float(info.max)
        assert half_type.tiny == pytest.approx(float(info.smallest_subnormal), rel=1e-3)


def test_an_output_that_a_node_reads_too_stays_float32(both: Run) -> None:
    want, got = both("(float[4] x) => (float[4] y, float[4] z) { y = Relu(x)\n z = Neg(y) }", {"x": X})
    assert {name: array.dtype for name, array in got.items()} == {"y": np.float32, "z": np.float32}
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=2e-3)


def test_a_16_bit_output_that_an_fp32_node_reads_is_cast_back_once(parse: Parse, write: Write) -> None:
    model = parse("(float[4] x) => (float[4] y, float[4] z, float[4] v) <float big = {1e5}>"
                  "{ y = Exp(x)\n z = Mul(y, big)\n v = Neg(y) }")  # fmt: skip
    assert apply(model)["y"].precision == "fp16"
    nodes = {node.name: node for node in onnx.load(write(model)).graph.node}
    assert nodes["z"].input[0] == "y"  # the FP32 output itself
    assert nodes["v"].input[0] == "y_fp16"


def test_the_same_tensor_may_be_two_outputs(parse: Parse) -> None:
    model = parse("(float[4] x) => (float[4] y) { y = Relu(x) }")
    model.graph.outputs.append(model.graph.outputs[0])
    apply(model)
    assert [value.name for value in model.graph.outputs] == ["y", "y"]
    assert {value.dtype for value in model.graph.outputs} == {ir.DataType.FLOAT}


def test_inputs_and_constants_that_are_outputs_stay_as_they_are(both: Run) -> None:
    body = "(float[4] x) => (float[4] w, float[4] z, float[4] x) <float[4] w = {1.0001, 2, 3, 4}> { z = Add(x, w) }"
    want, got = both(body, {"x": X})
    assert np.array_equal(got["w"], want["w"])
    assert np.array_equal(got["x"], want["x"])
    np.testing.assert_allclose(got["z"], want["z"], atol=4e-3)


def test_an_initializer_of_fp32_and_16_bit_nodes_exists_in_both_types(parse: Parse, write: Write) -> None:
    model = parse("(float[4] x, float[4] big) => (float[4] y, float[4] z) { y = Add(x, w)\n z = Add(big, w) }",
                  {"w": (4,)})  # fmt: skip
    decisions = apply(model, big=1e5)
    assert (decisions["y"].precision, decisions["z"].precision) == ("fp16", "fp32")
    type_of = types(write(model))
    assert (type_of["w"], type_of["w_fp16"]) == ("FLOAT", "FLOAT16")


def test_one_cast_serves_all_consumers_of_a_type(parse: Parse, write: Write) -> None:
    model = parse("(float[4] x) => (float[4] a, float[4] b) { a = Relu(x)\n b = Neg(x) }")
    apply(model)
    casts = [node for node in onnx.load(write(model)).graph.node if node.op_type == "Cast"]
    assert sorted(node.output[0] for node in casts) == ["a", "b", "x_fp16"]


@pytest.mark.parametrize(
    "body",
    [
        "(float[4] x) => (float[4] y, float[4] y_fp16) { y_fp16 = Relu(x)\n y = Neg(y_fp16) }",
        "(float[4] x) => (float[4] y) { x_fp16 = Relu(x)\n y = Add(x_fp16, x) }",
        "(float[4] x) => (float[4] y) <float[4] x_fp16 = {1, 2, 3, 4}> { y = Add(x, x_fp16) }",
    ],
)
def test_new_names_do_not_clash_with_those_of_the_model(both: Run, body: str) -> None:
    want, got = both(body, {"x": X})
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=4e-3)


def test_new_names_do_not_clash_with_those_of_subgraphs(both: Run) -> None:
    body = """(float[4] x, bool c) => (float[4] y) { t = Relu(x)
        y = If(c)<then_branch = p () => (float[4] t_fp32) { t_fp32 = Neg(t) },
                  else_branch = q () => (float[4] x_fp16) { x_fp16 = Abs(t) }> }"""
    want, got = both(body, {"x": X, "c": np.array(True)})
    np.testing.assert_allclose(got["y"], want["y"], atol=4e-3)


@pytest.mark.parametrize("condition", [True, False])
def test_subgraphs_stay_fp32_and_the_tensors_that_they_capture_are_cast_back(both: Run, condition: bool) -> None:
    body = """(float[4] x, bool c) => (float[4] z) { t = Exp(x)
        y = If(c)<then_branch = p () => (float[4] a) { a = Neg(t) },
                  else_branch = q () => (float[4] b) { b = Sqrt(t) }>
        z = Mul(y, y)\n }"""
    want, got = both(body, {"x": X, "c": np.array(condition)})
    np.testing.assert_allclose(got["z"], want["z"], rtol=4e-3)


def test_a_loop_carries_fp32(both: Run) -> None:
    body = """(float[4] x, int64 m, bool c) => (float[4] y) { t = Exp(x)
        l = Loop(m, c, t)<body = b (int64 i, bool go, float[4] p) => (bool on, float[4] s) {
            on = Identity(go)\n s = Add(p, t) }>
        y = Neg(l)\n }"""
    want, got = both(body, {"x": X, "m": np.array(3), "c": np.array(True)})
    np.testing.assert_allclose(got["y"], want["y"], rtol=4e-3)


def test_scales_of_a_resize_stay_float32(parse: Parse, write: Write) -> None:
    model = parse("(float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) <float[4] s = {1, 1, 2, 2}>"
                  '{ r = Exp(x)\n y = Resize(r, "", s) }')  # fmt: skip
    assert apply(model)["y"].precision == "fp16"
    type_of = types(write(model))
    assert type_of["s"] == "FLOAT"
    assert type_of["r"] == "FLOAT16"


def test_casts_and_fills_of_the_model_become_16_bit(both: Run) -> None:
    body = """(float[4] x, int64[4] i) => (float[4] y, double[4] d, int64[4] k) <int64[1] four = {4}> {
        f = Cast<to = 1>(i)\n r = Exp(x)\n same = Cast<to = 1>(r)\n s = Add(same, f)
        fill = ConstantOfShape<value = float[1] {0.5}>(four)
        none = ConstantOfShape(four)
        t = Add(s, fill)\n y = Add(t, none)
        wide = Cast<to = 11>(r)\n d = Neg(wide)\n k = Cast<to = 7>(y)\n }"""
    want, got = both(body, {"x": X, "i": np.arange(4)})
    for name in ("y", "d"):
        assert got[name].dtype == want[name].dtype
        np.testing.assert_allclose(got[name], want[name], rtol=4e-3)
    assert np.array_equal(got["k"], want["k"])


def test_decisions_name_every_computing_node_in_order(parse: Parse) -> None:
    model = parse("(float[2, 2] x) => (float[4] y) <int64[1] s = {4}>"
                  "{ a = Exp(x)\n b = Transpose(a)\n c = Reshape(b, s)\n y = Log(c) }")  # fmt: skip
    decisions = precision("fp16").apply(model, Request())
    assert [(d.node, d.op) for d in decisions] == [("a", "Exp"), ("y", "Log")]  # moving data is not arithmetic


def test_kept_nodes_compute_in_fp32(both: Run) -> None:
    body = "(float[4] x) => (float[4] y) <float big = {1e5}> { m = Mul(x, big)\n y = Div(m, big) }"
    want, got = both(body, {"x": X + np.float32(1e-4)})
    assert np.array_equal(got["y"], want["y"])  # 1e5 exceeds FP16's range, so both nodes stay in FP32


def test_bf16_is_simulated_too(both: Run) -> None:
    body = "(float[4] x) => (float[4] y) { m = Exp(x)\n y = Sqrt(m) }"
    want, got = both(body, {"x": X}, "bf16", 22)
    np.testing.assert_allclose(got["y"], want["y"], rtol=2**-6)
    assert not np.array_equal(got["y"], want["y"])
