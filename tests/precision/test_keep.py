"""Selection of the nodes that stay in FP32, and the reasons given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.formats import Format
from trtopt.precision import Request, precision
from trtopt.precision.bf16 import FORMAT as BF16
from trtopt.precision.fp16 import FORMAT as FP16
from trtopt.precision.passes.extent import RANGE_MARGIN
from trtopt.precision.passes.keep import keep

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]


def kept(model: ir.Model, half: object = FP16, **ranges: float) -> dict[str, str]:
    assert half in (FP16, BF16)
    return {node.name or "": reason for node, reason in keep(model, half, Request(ranges=ranges, spoiled={})).items()}  # type: ignore[arg-type]


def scalar(parse: Parse, op: str, value: str, opset: int = 22) -> ir.Model:
    return parse(f"(float[4] x) => (float[4] y) <float c = {{{value}}}> {{ y = {op}(x, c) }}", opset=opset)


@pytest.mark.parametrize("value", ["65505", "-1e5", "9.9e8"])
def test_a_constant_beyond_the_range_keeps_its_node(parse: Parse, value: str) -> None:
    model = scalar(parse, "Mul", value)
    assert kept(model)["y"].startswith("its constant reaches")
    assert kept(model)["y"].endswith("(FP16 maximum: 65504)")
    assert kept(model, BF16) == {}


@pytest.mark.parametrize("value", ["65504", "-65504", "1e9", "-3.4e38", "inf", "0", "1e-7", "6e-8"])
def test_a_constant_in_range_or_a_mask_does_not(parse: Parse, value: str) -> None:
    model = parse("(float[4] x) => (float[4] y) <float c = {0}> { a = Mul(x, c) y = Softmax(a) }")
    model.graph.initializers["c"].const_value = ir.tensor(np.array(float(value), np.float32))
    assert kept(model) == {}


MASKED = {
    "a score of an output": ("(float[4] x, bool[4] ok) => (float[4] y)", "a = Relu(x) y = Where(ok, a, low)", {"y"}),
    "that is moved": ("(float[4] x, bool[4] ok) => (float[2, 2] y)",
                      "a = Where(ok, x, low) b = Transpose(a) y = Reshape(b, two)", {"a", "b", "y"}),
    "beside a softmax": ("(float[4] x, bool[4] ok) => (float[4] y, float[4] z)",
                         "z = Where(ok, x, low) y = Softmax(z)", {"z"}),
    "before a softmax": ("(float[4] x, bool[4] ok) => (float[4] y)", "z = Where(ok, x, low) y = Softmax(z)", set()),
    "filled in": ("(float[4] x, int64[1] n) => (float[4] y)",
                  "f = ConstantOfShape<value = float[1] {-1e9}>(n) y = Add(x, f)", {"f", "y"}),
    "as a bound": ("(float[4] x) => (float[4] y)", "y = Clip(x, low)", set()),
    "as a divisor": ("(float[4] x) => (float[4] y)", "y = Div(x, low)", set()),
    "from an input": ("(float[4] x, float[4] m) => (float[4] y)", "y = Add(x, m)", {"y"}),
}  # fmt: skip


@pytest.mark.parametrize("half", [FP16, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("head", "body", "wanted"), MASKED.values(), ids=MASKED)
def test_nodes_that_bring_a_mask_to_an_output_are_kept(
    parse: Parse, head: str, body: str, wanted: set[str], half: Format
) -> None:
    model = parse(f"{head} <float low = {{-1e9}}, int64[2] two = {{2, 2}}> {{ {body} }}", opset=22)
    reasons = keep(model, half, Request(masks={"m": 1e9}))
    assert {node.name for node, reason in reasons.items() if "mask" in reason} == wanted


def test_one_element_beyond_the_range_is_enough(parse: Parse) -> None:
    model = parse("(float[4] x) => (float[4] y) <float[4] c = {1, 2, 7e4, -3e38}> { y = Mul(x, c) }")
    assert "its constant reaches 7e+04" in kept(model)["y"]


@pytest.mark.parametrize("value", ["1e-12", "-1e-9", "2.98023223876953125e-8"])
def test_a_constant_that_would_become_zero_keeps_its_node(parse: Parse, value: str) -> None:
    model = scalar(parse, "Add", value)
    assert f"its constant {abs(float(value)):.3g} would become 0 in FP16" == kept(model)["y"]
    assert kept(model, BF16) == {}
    assert np.float16(float(value)) == 0


def test_a_small_weight_among_others_does_not(parse: Parse) -> None:
    assert kept(parse("(float[2] x) => (float[2] y) <float[2] c = {1, 1e-12}> { y = Mul(x, c) }")) == {}


@pytest.mark.parametrize(
    ("body", "guarded"),
    [
        ("n = ReduceSum(x, a)\n e = Add(n, eps)\n y = Div(x, e)", {"e", "y"}),
        ("n = ReduceMean(x, a)\n e = Add(n, eps)\n s = Sqrt(e)\n y = Div(x, s)", {"e", "s", "y"}),
        ("n = ReduceL2(x, a)\n e = Clip(n, eps)\n s = Expand(e, sh)\n y = Div(x, s)", {"e", "s", "y"}),
        ("n = ReduceMean(x, a)\n e = Max(n, eps)\n r = Sqrt(e)\n s = Reciprocal(r)\n y = Mul(x, s)",
         {"e", "r", "s", "y"}),
        ("n = ReduceMean(x, a)\n e = Add(n, eps)\n s = Pow(e, minus)\n y = Mul(x, s)", {"e", "s", "y"}),
        ("n = Exp(x)\n e = Add(n, eps)\n y = Log(e)", {"n", "e", "y"}),
        ("n = Exp(x)\n m = Transpose(n)\n e = Clip(m, eps)\n o = Transpose(e)\n y = Log(o)", {"n", "m", "e", "o", "y"}),
    ],
    ids=["div", "sqrt", "norm", "reciprocal", "pow", "log", "log, moved"],
)  # fmt: skip
def test_a_division_guarded_by_a_tiny_constant_is_kept_with_all_nodes_between(
    parse: Parse, write: Write, body: str, guarded: set[str]
) -> None:
    text = """(float[1, 4] x0) => (float[1, 4] z) <float eps = {1e-12}, float minus = {-0.5}, int64[1] a = {1},
        int64[2] sh = {1, 4}> { p = Tanh(x0)\n x = Relu(p)\n BODY\n v = Tanh(y)\n z = Relu(v) }"""
    model = parse(text.replace("BODY", body))
    reasons = kept(model)
    assert guarded <= reasons.keys()
    assert not {"p", "x", "v", "z"} & reasons.keys()
    precision("fp16").apply(model, Request())
    zeros = open_runner(write(model)).run({"x0": np.zeros((1, 4), np.float32)})["z"]
    assert np.isfinite(zeros).all()


def test_a_tiny_constant_that_does_not_guard_a_division_keeps_only_its_node(parse: Parse) -> None:
    model = parse("(float[4] x) => (float[4] z) <float eps = {1e-12}>"
                  "{ e = Add(x, eps)\n n = Neg(e)\n t = Tanh(n)\n d = Div(n, t)\n z = Tanh(d) }")  # fmt: skip
    assert set(kept(model)) == {"e"}


def test_an_observed_absmax_near_the_maximum_keeps_producer_and_consumers(parse: Parse) -> None:
    model = parse(
        "(float[4] x) => (float[4] z) { o = Erf(x)\n a = Erf(o)\n b = Exp(a)\n c = Erf(b)\n d = Erf(c)\n z = Erf(d) }"
    )
    reasons = kept(model, b=65504 / RANGE_MARGIN * 1.01)
    assert set(reasons) == {"b", "c"}
    assert reasons["b"] == reasons["c"] == "b reaches 3.31e+04 (FP16 maximum: 65504)"
    assert kept(model, b=65504 / RANGE_MARGIN * 0.99) == {}
    assert kept(model, BF16, b=1e6) == {}


def test_an_activation_that_8_bits_resolve_better_keeps_writer_and_readers(parse: Parse) -> None:
    model = parse(
        "(float[4] x) => (float[4] z) { o = Erf(x)\n a = Erf(o)\n b = Exp(a)\n c = Erf(b)\n d = Erf(c)\n z = Erf(d) }"
    )
    found = kept(model, b=1e-6)
    assert set(found) == {"b", "c"}
    assert found["b"] == found["c"] == "b reaches only 1e-06 (FP16 step: 5.96e-08)"
    assert kept(model, b=127 * FP16.tiny) == kept(model, b=0.0) == kept(model, BF16, b=1e-6) == {}


def test_a_weight_that_8_bits_resolve_better_keeps_its_node(parse: Parse) -> None:
    model = parse("(float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1e-6, 0, 0, 0}> { y = MatMul(x, w) }")
    assert kept(model) == {"y": "its weight reaches only 1e-06 (FP16 step: 5.96e-08)"}
    assert kept(model, BF16) == {}


def test_a_mean_whose_sum_overflows_is_kept(parse: Parse) -> None:
    model = parse("(float[n, 8, 64, 64] x) => (float[n, 8, 1, 1] y) { r = Tanh(x)\n y = GlobalAveragePool(r) }")
    assert kept(model, r=30.0, y=15.9) == {}  # 15.9 * 4096 = 65126
    assert "the sum inside its mean reaches 6.55e+04" in kept(model, r=30.0, y=16.0)["y"]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("axis", "terms"), [(0, 6), (1, 50)])
def test_the_terms_of_a_mean_are_those_of_its_axis(parse: Parse, keepdims: int, axis: int, terms: int) -> None:
    shape = ([1, 50] if axis == 0 else [6, 1]) if keepdims else [50 if axis == 0 else 6]
    model = parse(f"(float[6, 50] x) => (float{shape} y) <int64[1] a = {{{axis}}}>"
                  f"{{ r = Tanh(x)\n y = ReduceMean<keepdims = {keepdims}>(r, a) }}")  # fmt: skip
    limit = 65504 / terms
    assert kept(model, y=limit * 0.99) == {}
    assert "y" in kept(model, y=limit * 1.01)


@pytest.mark.parametrize(("axes", "result"), [("2", "[n, 50]"), ("0, 2", "[50]"), ("0, 1, 2", "[]")])
def test_a_dynamic_dimension_counts_as_one_term(parse: Parse, axes: str, result: str) -> None:
    model = parse(f"(float[n, 50, 6] x) => (float{result.replace('[]', '')} y) <int64[k] a = {{{axes}}}>".replace(
        "[k]", f"[{axes.count(',') + 1}]") + "{ r = Tanh(x)\n y = ReduceMean<keepdims = 0>(r, a) }")  # fmt: skip
    terms = 300 if "1" in axes else 6
    assert kept(model, y=65504 / terms * 0.99) == {}
    assert "y" in kept(model, y=65504 / terms * 1.01)


def test_a_norm_whose_square_overflows_is_kept(parse: Parse) -> None:
    model = parse("(float[6, 8] x) => (float[6, 1] y) <int64[1] a = {1}> { r = Tanh(x)\n y = ReduceL2(r, a) }")
    assert kept(model, y=255.0) == {}
    assert "the sum inside its norm reaches 6.6e+04" in kept(model, y=257.0)["y"]


def test_arithmetic_on_positions_is_kept_and_stays_exact(parse: Parse, write: Write) -> None:
    model = parse("(int64[3] p) => (int64[3] y) <float two = {2}>"
                  "{ f = Cast<to = 1>(p)\n g = Div(f, two)\n h = Floor(g)\n y = Cast<to = 7>(h) }")  # fmt: skip
    assert kept(model)["g"] == kept(model)["h"] == "computes positions or sizes"
    precision("fp16").apply(model, Request())
    got = open_runner(write(model)).run({"p": np.array([4099, 8191, 5])})["y"]
    assert got.tolist() == [2049, 4095, 2]  # FP16 would say 2048 and 4096


def test_a_network_between_a_uint8_image_and_an_integer_result_does_not_compute_positions(parse: Parse) -> None:
    model = parse("(uint8[1, 3, 8, 8] p) => (int32[1, 3, 8, 8] y) <float two = {2}>"
                  "{ f = Cast<to = 1>(p)\n g = Mul(f, two)\n h = Conv(g, w)\n k = Mul(h, two)\n y = Cast<to = 6>(k) }",
                  {"w": (3, 3, 1, 1)})  # fmt: skip
    assert kept(model) == {}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(float[4] x) => (float[4] y) { y = custom.Op(x) }", "a custom operator"),
        ("(int64[4] i, float[4] x) => (float[4] y) { y = CastLike(i, x) }", "its data type is an attribute"),
        ("(float a, float b, float c) => (float[n] y) { y = Range(a, b, c) }", "does not support FP16"),
        ("(float[1, 6, 4] b, float[1, 1, 6] s) => (int64[k, 3] y) { y = NonMaxSuppression(b, s) }",
         "does not support FP16"),
        ("(float[4] x, bool c) => (float[4] y) { y = If(c)<then_branch = p () => (float[4] u) { u = Neg(x) },"
         "else_branch = q () => (float[4] v) { v = Abs(x) }> }", "it contains a subgraph"),
    ],
)  # fmt: skip
def test_operators_that_do_not_support_16_bits_are_kept(parse: Parse, body: str, reason: str) -> None:
    assert reason in kept(parse(body))["y"]


def test_a_convolution_before_the_opset_that_supports_bf16_is_kept(parse: Parse) -> None:
    body, weights = "(float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] y) { y = Conv(x, w) }", {"w": (3, 3, 1, 1)}
    assert kept(parse(body, weights, 21), BF16) == {"y": "the operator does not support BF16"}
    assert kept(parse(body, weights, 22), BF16) == {}
    assert kept(parse(body, weights, 21), FP16) == {}


def test_statistics_of_a_layer_norm_that_are_outputs_are_fp32(parse: Parse, write: Write) -> None:
    model = parse("(float[1, 4] x) => (float[1, 4] y, float[1, 1] m) { t = Tanh(x)\n y, m = LayerNormalization(t, s) }",
                  {"s": (4,)}, 22)  # fmt: skip
    assert "y" in kept(model)
    assert kept(model, BF16)["y"] == "its statistics are FP32 outputs"
    precision("bf16").apply(model, Request())
    write(model)


def test_quantization_scales_that_would_become_zero_stay_fp32(parse: Parse, write: Write) -> None:
    model = parse("""(float[2, 2] x) => (float[2, 2] y) <float[2] s = {1e-9, 1e-3}, int8[2] z = {0, 0}> {
        o = Sin(x)\n t = Tanh(o)\n q = QuantizeLinear(t, s, z)\n d = DequantizeLinear(q, s, z)
        u = Tanh(d)\n y = Sin(u)\n }""")
    assert set(kept(model)) == {"q", "d"}
    precision("fp16").apply(model, Request())
    write(model)


def test_a_small_operator_between_kept_nodes_is_kept_rather_than_cast_twice(parse: Parse) -> None:
    model = parse("(float[4] x) => (float[4] z) { a = Exp(x)\n b = Neg(a)\n c = Sin(b)\n z = Cos(c) }")
    assert kept(model, x=1e6, c=1e6)["b"] == "all its neighbours stay in FP32"


def test_a_matrix_product_between_kept_nodes_is_not_kept(parse: Parse) -> None:
    model = parse("(float[4, 4] x) => (float[4, 4] z) { a = Tanh(x)\n b = MatMul(a, w)\n z = Tanh(b) }", {"w": (4, 4)})
    assert set(kept(model, x=1e6, z=1e6)) == {"a", "z"}


def test_a_sum_over_dynamic_dimensions_is_judged_by_the_observed_sizes(parse: Parse) -> None:
    model = parse("(float[n, 4, h, w] x) => (float[n, 4, 1, 1] y) { y = GlobalAveragePool(x) }")
    reasons = keep(model, FP16, Request(ranges={"y": 2.0}, sizes={"x": 4 * 200 * 200, "y": 4}))
    assert list(reasons.values()) == ["the sum inside its mean reaches 8e+04 (FP16 maximum: 65504)"]
    assert keep(model, FP16, Request(ranges={"y": 2.0}, sizes={"x": 4 * 100 * 100, "y": 4})) == {}
