"""Placement of Q/DQ pairs: for every rule a network that it applies to, and one that it does not apply to."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from trtopt.errors import ModelError
from trtopt.precision.passes.operands import weighted_inputs
from trtopt.precision.passes.placement import NEVER, Placement, place
from trtopt.types import Keep

Parse = Callable[..., ir.Model]
Shapes = dict[str, tuple[int, ...]]
IMAGE = "(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y)"
CONV: Shapes = {"w": (16, 16, 1, 1)}


def sites(placement: Placement) -> set[tuple[str, int, int | None, str]]:
    return {(site.node.name or "", site.index, site.axis, site.scale_from) for site in placement.sites}


def reason(placement: Placement, node: str) -> str:
    return next(decision.reason for decision in placement.decisions() if decision.node == node)


def quantized(placement: Placement) -> set[str]:
    return {decision.node for decision in placement.decisions() if decision.precision == "int8"}


# Rules 1 and 2: both inputs of a weighted operator; weights along their output channels


@pytest.mark.parametrize(
    ("body", "weights", "axis"),
    [
        (f"{IMAGE} {{ y = Conv(x, w) }}", CONV, 0),
        (f"{IMAGE} {{ y = Conv<group = 2>(x, w) }}", {"w": (16, 8, 1, 1)}, 0),
        (f"{IMAGE} {{ y = ConvTranspose(x, w) }}", CONV, 1),
        ("(float[n, 16] x) => (float[n, 32] y) { y = Gemm(x, w) }", {"w": (16, 32)}, 1),
        ("(float[n, 16] x) => (float[n, 32] y) { y = Gemm<transB = 1>(x, w) }", {"w": (32, 16)}, 0),
        ("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)}, 1),
        ("(float[2, n, 16] x) => (float[2, n, 32] y) { y = MatMul(x, w) }", {"w": (2, 16, 32)}, 2),
    ],
    ids=["conv", "grouped", "conv-transpose", "gemm", "gemm-transposed", "matmul", "batched-matmul"],
)
def test_both_inputs_of_a_weighted_operator_are_quantized(parse: Parse, body: str, weights: Shapes, axis: int) -> None:
    placement = place(parse(body, weights))
    assert sites(placement) == {("y", 0, None, "x"), ("y", 1, axis, "w")}
    assert placement.tensors() == ("x",)
    assert reason(placement, "y") == "a weighted operator"


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_product_of_two_activations_quantizes_both(parse: Parse, op: str) -> None:
    placement = place(parse(f"(float[32, 32] a, float[32, 32] b) => (float[32, 32] y) {{ y = {op}(a, b) }}"))
    assert sites(placement) == {("y", 0, None, "a"), ("y", 1, None, "b")}


def test_an_operator_of_another_domain_is_not_weighted(parse: Parse) -> None:
    model = parse(f"{IMAGE} {{ y = Conv(x, w) }}", CONV)
    model.graph[0].domain = "custom"
    assert weighted_inputs(model.graph[0]) == ()


# Rule 3: no Q after a weighted operator


def test_nothing_is_quantized_between_a_convolution_and_its_activation(parse: Parse) -> None:
    placement = place(parse(f"{IMAGE} {{ c = Conv(x, w)\n r = Relu(c)\n y = Conv(r, w) }}", CONV))
    assert placement.tensors() == ("x", "r")
    assert reason(placement, "r") == "not a weighted operator"


# Rule 5: data movement keeps the scale; average pools are quantized if their consumers are


def test_data_movement_keeps_the_scale(parse: Parse) -> None:
    body = """(float[4, 16, 8, 8] x) => (float[4, 32] y) <int64[2] s = {4, 256}> {
        r = Relu(x)\n m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
        t = Transpose(m)\n f = Reshape(t, s)\n y = Gemm(f, w)\n }"""
    placement = place(parse(body, {"w": (256, 32)}))
    assert placement.tensors() == ("r",)
    assert ("y", 0, None, "r") in sites(placement)  # quantized at the consumer, with the scale of the tensor's source


@pytest.mark.parametrize("op", ["Relu", "Softmax", "AveragePool<kernel_shape = [1, 1]>"])
def test_a_computed_tensor_has_a_scale_of_its_own(parse: Parse, op: str) -> None:
    placement = place(parse(f"{IMAGE} {{ a = {op}(x)\n y = Conv(a, w) }}", CONV))
    assert "a" in placement.tensors()


@pytest.mark.parametrize("op", ["GlobalAveragePool", "AveragePool<kernel_shape = [8, 8]>"])
def test_an_average_pool_between_quantized_tensors_is_quantized(parse: Parse, op: str) -> None:
    body = f"""(float[4, 16, 8, 8] x) => (float[4, 32] y) {{
        c = Conv(x, w)\n r = Relu(c)\n p = {op}(r)\n f = Flatten(p)\n y = Gemm(f, v) }}"""
    placement = place(parse(body, {**CONV, "v": (16, 32)}))
    assert ("p", 0, None, "r") in sites(placement)
    assert ("y", 0, None, "p") in sites(placement)
    assert reason(placement, "p") == "an average pool between quantized tensors"


@pytest.mark.parametrize("body", [
    "<int64[2] a = {2, 3}> { r = Relu(x)\n p = ReduceMean<keepdims = 0>(r, a)\n y = Gemm(p, v) }",
    "<int64[2] a = {-1, -2}> { r = Relu(x)\n p = ReduceMean(r, a)\n f = Flatten(p)\n y = Gemm(f, v) }",
])  # fmt: skip
def test_an_average_over_all_pixels_is_an_average_pool(parse: Parse, body: str) -> None:
    placement = place(parse(f"(float[n, 16, 8, 8] x) => (float[n, 32] y) {body}", {"v": (16, 32)}))
    assert ("p", 0, None, "r") in sites(placement)
    assert reason(placement, "p") == "an average pool between quantized tensors"


def test_the_axes_of_an_average_may_be_an_attribute(parse: Parse) -> None:
    body = """(float[n, 16, 8, 8] x) => (float[n, 32] y) {
        p = ReduceMean<axes = [2, 3], keepdims = 0>(x)\n y = Gemm(p, v) }"""
    assert "p" in quantized(place(parse(body, {"v": (16, 32)}, 13)))


@pytest.mark.parametrize(("axes", "out"), [("1", "n, 16, 32"), ("3", "n, 16, 32"), ("1, 2", "n, 32")])
def test_an_average_over_other_axes_is_not_an_average_pool(parse: Parse, axes: str, out: str) -> None:
    body = f"""(float[n, 16, 16, 16] x) => (float[{out}] y) <int64[{len(axes.split(","))}] a = {{{axes}}}> {{
        p = ReduceMean<keepdims = 0>(x, a)\n y = MatMul(p, v) }}"""
    assert quantized(place(parse(body, {"v": (16, 32)}))) == {"y"}


@pytest.mark.parametrize(
    "tail", ["y0 = Flatten(p)\n y = Relu(y0)", "f = Flatten(p)\n g = Gemm(f, v)\n r2 = Relu(f)\n y = Mul(g, r2)"]
)
def test_an_average_pool_with_a_consumer_in_16_bits_is_not_quantized(parse: Parse, tail: str) -> None:
    body = f"(float[4, 16, 8, 8] x) => (float[4, 16] y) {{ p = GlobalAveragePool(x)\n {tail} }}"
    placement = place(parse(body, {"v": (16, 16)}))
    assert "p" not in quantized(placement)
    assert reason(placement, "p") == "not a weighted operator"


def test_an_average_pool_that_is_an_output_is_not_quantized(parse: Parse) -> None:
    body = """(float[4, 16, 8, 8] x) => (float[4, 32, 1, 1] y, float[4, 16, 1, 1] p) {
        p = GlobalAveragePool(x)\n y = Conv(p, w) }"""
    assert "p" not in quantized(place(parse(body, {"w": (32, 16, 1, 1)})))


# Rule 6: the inputs and the output of a Concat share one scale

JOIN = """(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y, float[1, 16, 8, 8] z) {
    a = Relu(x)\n b = Sigmoid(x)\n m = MaxPool<kernel_shape = [1, 1]>(b)
    j = Concat<axis = 1>(a, m)\n y = Conv(j, v)\n k = Conv(a, w)\n l = Conv(b, w)\n z = Add(k, l) }"""


def test_the_inputs_of_a_quantized_concat_share_its_scale(parse: Parse) -> None:
    placement = place(parse(JOIN, {**CONV, "v": (16, 32, 1, 1)}))
    assert placement.groups == (frozenset({"a", "b", "j"}),)
    assert placement.group("a") == placement.group("j") == frozenset({"a", "b", "j"})
    assert placement.group("x") == frozenset({"x"})


def test_concats_that_share_an_input_form_one_group(parse: Parse) -> None:
    body = JOIN.replace("y = Conv(j, v)", "i = Concat<axis = 1>(b, x)\n y1 = Conv(j, v)\n y2 = Conv(i, v)\n y3 = "
                        "Conv(x, w)\n y4 = Add(y1, y2)\n y = Add(y3, y4)")  # fmt: skip
    placement = place(parse(body, {**CONV, "v": (16, 32, 1, 1)}))
    assert placement.groups == (frozenset({"a", "b", "i", "j", "x"}),)


def test_a_concat_whose_output_is_not_quantized_forms_no_group(parse: Parse) -> None:
    body = JOIN.replace("y = Conv(j, v)", "y = Relu(j)").replace("float[1, 16, 8, 8] y", "float[1, 32, 8, 8] y")
    assert place(parse(body, CONV)).groups == ()


# Rule 7: operators that are never quantized (attention has its own module)


@pytest.mark.parametrize("op", ["Softmax", "Sigmoid", "LeakyRelu", "LogSoftmax", "HardSigmoid"])
def test_operators_that_are_never_quantized_have_a_reason(parse: Parse, op: str) -> None:
    placement = place(parse(f"{IMAGE} {{ c = Conv(x, w)\n y = {op}(c) }}", CONV))
    assert reason(placement, "y") == NEVER[op]
    assert quantized(placement) == {"c"}


def test_normalizations_are_not_quantized(parse: Parse) -> None:
    body = "(float[4, 16] x) => (float[4, 32] y) { l = LayerNormalization(x, s)\n y = Gemm(l, w) }"
    placement = place(parse(body, {"s": (16,), "w": (16, 32)}))
    assert reason(placement, "l") == "its statistics need more than 8 bits"
    assert placement.tensors() == ("l",)


# Rule 8: operators that INT8 would not make faster


@pytest.mark.parametrize(
    ("body", "weights", "why"),
    [
        ("(float[1, 5, 8, 8] x) => (float[1, 32, 8, 8] y) { y = Conv(x, w) }", {"w": (32, 5, 1, 1)},
         "5 channels: fewer than 8"),
        ("(float[1, 3, 8] x) => (float[1, 32, 8] y) { y = Conv(x, w) }", {"w": (32, 3, 1)},
         "3 channels: fewer than 8"),
        ("(float[1, 3, 8, 8] x) => (float[1, 16, 8, 8] y) { y = Conv(x, w) }", {"w": (16, 3, 1, 1)},
         "3 channels: fewer than 8"),
        ("(float[1, 16, 8, 8] x) => (float[1, 7, 8, 8] y) { y = Conv(x, w) }", {"w": (7, 16, 1, 1)},
         "7 channels: fewer than 8"),
        ("(float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) { y = Conv<group = 4>(x, w) }", {"w": (4, 1, 1, 1)},
         "4 channels: fewer than 8"),
        ("(float[1, 16, 8, 8] x, float[16, 16, 1, 1] w) => (float[1, 16, 8, 8] y) { y = Conv(x, w) }", {},
         "its weight is not constant"),
        ("(float[1, 64] x) => (float[1, 64] y) { y = Gemm(x, w) }", {"w": (64, 64)}, "a matrix-vector product"),
        ("(float[64, 1] x) => (float[1, 64] y) { y = Gemm<transA = 1>(x, w) }", {"w": (64, 64)},
         "a matrix-vector product"),
        ("(float[1, 1, 64] x) => (float[1, 1, 64] y) { y = MatMul(x, w) }", {"w": (64, 64)},
         "a matrix-vector product"),
        ("(float[4, 1, 64] x) => (float[4, 1, 64] y) { y = MatMul(x, w) }", {"w": (4, 64, 64)},
         "a matrix-vector product"),
        ("(float[32, 64] x) => (float[32, 1] y) { y = MatMul(x, w) }", {"w": (64, 1)}, "a matrix-vector product"),
        ("(float[64] x) => (float[32] y) { y = MatMul(x, w) }", {"w": (64, 32)}, "a matrix-vector product"),
        ("(float[32, 64] x) => (float[32] y) { y = MatMul(x, w) }", {"w": (64,)}, "a matrix-vector product"),
        ("(float[32, 15] x) => (float[32, 64] y) { y = MatMul(x, w) }", {"w": (15, 64)},
         "inner dimension 15: less than 16"),
        ("(float[32, 64] x) => (float[32, 15] y) { y = MatMul(x, w) }", {"w": (64, 15)},
         "outer dimension 15: less than 16"),
        ("(float[32, 64] x) => (float[32, 15] y) { y = Gemm<transB = 1>(x, w) }", {"w": (15, 64)},
         "outer dimension 15: less than 16"),
        ("(float[64, 32] x) => (float[32, 32] y) { y = MatMul(w, x) }", {"w": (32, 64)},
         "its left operand is constant"),
    ],
)  # fmt: skip
def test_an_operator_that_int8_would_not_speed_up_is_not_quantized(
    parse: Parse, body: str, weights: Shapes, why: str
) -> None:
    placement = place(parse(body, weights))
    assert placement.sites == ()
    assert reason(placement, "y").startswith(why)


@pytest.mark.parametrize("groups", [1, 8])
def test_a_convolution_of_8_channels_is_quantized(parse: Parse, groups: int) -> None:
    body = f"(float[1, 8, 8, 8] x) => (float[1, 8, 8, 8] y) {{ a = Conv<group = {groups}>(x, w) y = Conv(a, v) }}"
    assert quantized(place(parse(body, {"w": (8, 8 // groups, 1, 1), "v": (8, 8, 1, 1)}))) == {"a", "y"}


DEPTHWISE: Shapes = {"d": (16, 1, 3, 3), "w": (16, 16, 1, 1)}
BEHIND_DEPTHWISE = {
    "nothing": ("y = Conv(a, w)", True),
    "Relu": ("b = Relu(a) y = Conv(b, w)", True),
    "Clip": ("b = Clip(a) y = Conv(b, w)", True),
    "SiLU": ("s = Sigmoid(a) b = Mul(a, s) y = Conv(b, w)", True),
    "Relu and data movement": ("b = Relu(a) c = MaxPool<kernel_shape = [1, 1]>(b) y = Conv(c, w)", True),
    "two readers": ("b = Relu(a) c = Conv(b, w) e = Conv(b, w) y = Add(c, e)", True),
    "hard-swish": ("h = HardSwish(a) y = Conv(h, w)", False),
    "hard-swish in parts": ("h = HardSigmoid(a) b = Mul(a, h) y = Conv(b, w)", False),
    "LeakyRelu": ("b = LeakyRelu(a) y = Conv(b, w)", False),
    "a factor": ("b = Mul(a, a) y = Conv(b, w)", False),
    "residual Add": ("b = Add(a, x) c = Conv(b, w) y = Relu(c)", False),
    "a reader in 16 bits": ("b = Relu(a) c = Conv(b, w) e = Tanh(b) y = Mul(c, e)", False),
    "a gate of another tensor": ("s = Sigmoid(a) b = Mul(x, s) c = Conv(a, w) y = Conv(b, w)", False),
    "two activations": ("b = Relu(a) e = Clip(b) y = Conv(e, w)", False),
    "the output of the network": ("y = Relu(a)", False),
}


@pytest.mark.parametrize(("after", "expected"), BEHIND_DEPTHWISE.values(), ids=BEHIND_DEPTHWISE.keys())
def test_a_depthwise_convolution_is_quantized_if_its_output_is(parse: Parse, after: str, expected: bool) -> None:
    placement = place(parse(f"{IMAGE} {{ a = Conv<group = 16, pads = [1, 1, 1, 1]>(x, d) {after} }}", DEPTHWISE))
    assert ("a" in quantized(placement)) == expected
    assert reason(placement, "a").startswith("a depthwise convolution that is followed by ") != expected


def test_a_dense_convolution_is_quantized_whatever_follows(parse: Parse) -> None:
    placement = place(parse(f"{IMAGE} {{ a = Conv(x, w) h = HardSwish(a) y = Add(h, x) }}", CONV))
    assert quantized(placement) == {"a"}


def test_a_chain_of_depthwise_convolutions_is_not_quantized_if_the_last_one_is_not(parse: Parse) -> None:
    body = f"{IMAGE} {{ a = Conv<group = 16>(x, d) b = Conv<group = 16>(a, d) h = HardSwish(b) y = Conv(h, w) }}"
    placement = place(parse(body, {"d": (16, 1, 1, 1), "w": (16, 16, 1, 1)}))
    assert quantized(placement) == {"y"}
    assert reason(placement, "a") == "a depthwise convolution that is followed by Conv, not by a quantization"


def test_a_depthwise_convolution_that_an_output_of_the_network_shows_is_not_quantized(parse: Parse) -> None:
    graph = "(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] a, float[1, 16, 8, 8] y)"
    placement = place(parse(f"{graph} {{ a = Conv<group = 16>(x, d) b = Relu(a) y = Conv(b, w) }}", DEPTHWISE))
    assert quantized(placement) == {"y"}
    assert reason(placement, "a").endswith("followed by Relu and an output of the network, not by a quantization")


def test_a_depthwise_convolution_does_not_depend_on_what_is_kept(parse: Parse) -> None:
    model = parse(f"{IMAGE} {{ a = Conv<group = 16>(x, d) b = Relu(a) y = Conv(b, w) }}", DEPTHWISE)
    assert quantized(place(model)) == {"a", "y"}
    assert quantized(place(model, {"y": Keep(pattern="y")})) == {"a"}
    assert quantized(place(model, {"a": Keep(pattern="a")})) == {"y"}


def test_what_depends_on_a_depthwise_convolution_that_is_not_quantized_is_not_either(parse: Parse) -> None:
    body = f"""{IMAGE} {{
        p = AveragePool<kernel_shape = [1, 1]>(x) a = Conv<group = 16>(p, d) s = Add(a, p) h = HardSwish(s)
        y = Conv(h, w) }}"""
    assert quantized(place(parse(body, {"d": (16, 1, 1, 1), "w": (16, 16, 1, 1)}))) == {"y"}


@pytest.mark.parametrize("shape", ["20, 1, 64", "n, 1, 64", "1, 20, 1, 64"])
def test_all_rows_of_a_product_with_one_matrix_count(parse: Parse, shape: str) -> None:
    body = f"(float[{shape}] x) => (float[{shape}] y) {{ y = MatMul(x, w) }}"
    assert quantized(place(parse(body, {"w": (64, 64)}))) == {"y"}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_first_convolution_of_an_image_network_is_quantized_although_it_has_few_channels(
    parse: Parse, channels: int
) -> None:
    body = f"(float[n, {channels}, 8, 8] x) => (float[n, 32, 8, 8] y) {{ p = Neg(x)\n y = Conv(p, w) }}"
    assert quantized(place(parse(body, {"w": (32, channels, 1, 1)}))) == {"y"}


def test_a_later_convolution_of_few_channels_is_not_quantized(parse: Parse) -> None:
    body = "(float[n, 3, 8, 8] x) => (float[n, 32, 8, 8] y) { c = Conv(x, v)\n r = Relu(c)\n y = Conv(r, w) }"
    placement = place(parse(body, {"v": (3, 3, 1, 1), "w": (32, 3, 1, 1)}))
    assert "y" not in quantized(placement)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("(float[n, 16] x) => (float[n, 16] y) { y = MatMul(x, w) }", {"w": (16, 16)}),
        ("(float[16, 16] x) => (float[16, 16] y) { y = Gemm<transA = 1>(x, w) }", {"w": (16, 16)}),
        ("(float[n, m] x) => (float[n, 16] y) { y = MatMul(x, w) }", {"w": (16, 16)}),
    ],
)
def test_a_dynamic_or_just_large_enough_product_is_quantized(parse: Parse, body: str, weights: Shapes) -> None:
    assert quantized(place(parse(body, weights))) == {"y"}


# Rule 9: one scale per tensor, shared by its consumers


def test_a_tensor_with_two_consumers_needs_one_scale(parse: Parse) -> None:
    placement = place(parse(f"{IMAGE} {{ a = Conv(x, w)\n b = Conv(x, w)\n y = Mul(a, b) }}", CONV))
    assert placement.tensors() == ("x",)
    assert {site.scale_from for site in placement.sites if site.axis is None} == {"x"}


# Rule 10 is tested with precision.passes.half. Here only: every node that does arithmetic has a decision


def test_a_node_that_is_not_quantized_has_a_decision_in_the_fallback_precision(parse: Parse) -> None:
    body = f"{IMAGE} {{ a = Conv(x, w)\n t = Transpose(a)\n u = Transpose(t)\n y = Exp(u) }}"
    decisions = place(parse(body, CONV)).decisions(rest="bf16")
    assert [(d.node, d.op, d.precision) for d in decisions] == [("a", "Conv", "int8"), ("y", "Exp", "bf16")]


@pytest.mark.parametrize(
    "body",
    [
        "(float[4] x) => (int8[4] y) <float s = {1}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }",
        "(int8[4] x) => (float[4] y) <float s = {1}, int8 z = {0}> { y = DequantizeLinear(x, s, z) }",
        "(int8[4, 4] x) => (int8[4, 4] y) <float s = {1}, int8 z = {0}> { y = QLinearMatMul(x, s, z, x, s, z, s, z) }",
    ],
)
def test_a_quantized_model_is_rejected(parse: Parse, body: str) -> None:
    with pytest.raises(ModelError, match="the model is quantized already"):
        place(parse(body))
