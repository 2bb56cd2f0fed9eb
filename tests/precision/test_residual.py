"""Rule 4: the skip input of a residual Add is quantized, and nothing between the convolution and the Add."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtopt.precision.passes.placement import place
from trtopt.precision.passes.residual import skip_inputs
from trtopt.types import Keep

Parse = Callable[..., ir.Model]
HEAD = "(float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] z)"
WEIGHTS = {"w": (16, 16, 1, 1)}


def skips(model: ir.Model) -> set[tuple[str, str]]:
    """Return (Add, its skip tensor) by name, as if every convolution were quantized."""
    convs = {node for node in model.graph if node.op_type == "Conv"}
    pairs = skip_inputs(model.graph, convs)
    return {(node.name or "", value.name or "") for node, index in pairs if (value := node.inputs[index]) is not None}


@pytest.mark.parametrize(
    ("body", "skip"),
    [
        ("r = Relu(x)\n a = Conv(r, w)\n s = Add(a, r)", "r"),
        ("r = Relu(x)\n a = Conv(r, w)\n s = Add(r, a)", "r"),
        ("a = Conv(x, w)\n s = Add(a, x)", "x"),
        ("a = Conv(x, w)\n b = Conv(x, w)\n r = Relu(b)\n s = Add(a, r)", "r"),
    ],
)
def test_the_input_that_is_not_a_convolution_is_the_skip(parse: Parse, body: str, skip: str) -> None:
    model = parse(f"{HEAD} {{ {body}\n z = Relu(s) }}", WEIGHTS)
    assert skips(model) == {("s", skip)}
    placement = place(model)
    assert next(d for d in placement.decisions() if d.node == "s").reason == "the skip input of a residual Add"
    assert skip in placement.tensors()
    assert "a" not in placement.tensors()  # never between the convolution and the Add


@pytest.mark.parametrize("order", ["a, c", "c, a"])
@pytest.mark.parametrize("last", ["Conv(b, w)", "Exp(b)"])
def test_the_input_that_the_other_is_computed_from_is_the_skip(parse: Parse, order: str, last: str) -> None:
    # A linear bottleneck: its input is a convolution's output, too, and its last convolution fuses with the Add.
    body = (
        f"""{HEAD} {{ a = Conv(x, w)\n r = Relu(a)\n b = Conv(r, w)\n c = {last}\n s = Add({order})\n z = Relu(s) }}"""
    )
    assert skips(parse(body, WEIGHTS)) == {("s", "a")}


@pytest.mark.parametrize("order", ["a, c", "c, a"])
@pytest.mark.parametrize("body", ["p = Mul(a, a)\n c = Mul(p, a)", "p = Conv(x, w)\n c = Mul(a, p)"])
def test_a_sum_within_an_activation_function_is_not_residual(parse: Parse, body: str, order: str) -> None:
    model = parse(f"{HEAD} {{ a = Conv(x, w)\n {body}\n s = Add({order})\n z = Relu(s) }}", WEIGHTS)
    assert skips(model) == set()


@pytest.mark.parametrize("order", ["short, long", "long, short"])
def test_of_two_convolutions_the_one_with_the_longer_path_is_the_skip(parse: Parse, order: str) -> None:
    body = f"""{HEAD} {{ r = Relu(x)\n short = Conv(r, w)
        a = Conv(r, w)\n b = Relu(a)\n long = Conv(b, w)\n s = Add({order})\n z = Relu(s) }}"""
    assert skips(parse(body, WEIGHTS)) == {("s", "long")}


def test_paths_are_measured_from_the_lowest_common_ancestor(parse: Parse) -> None:
    # From o the left branch is longer; from p, where they part, the right one is.
    body = f"""{HEAD} {{ o = Relu(x)\n a = Exp(o)\n b = Exp(a)\n c = Exp(b)\n d = Exp(c)
        p = Tanh(o)\n t = Add(p, d)\n left = Conv(t, w)
        q = Exp(p)\n r = Exp(q)\n right = Conv(r, w)\n s = Add(left, right)\n z = Relu(s) }}"""
    assert skips(parse(body, WEIGHTS)) == {("s", "right")}


def test_a_branch_is_as_long_as_its_longest_path(parse: Parse) -> None:
    body = f"""{HEAD} {{ p = Relu(x)\n short = Exp(p)\n a = Exp(p)\n b = Exp(a)\n t = Add(b, short)
        right = Conv(t, w)\n c = Tanh(p)\n d = Tanh(c)\n left = Conv(d, w)
        s = Add(right, left)\n z = Relu(s) }}"""
    assert skips(parse(body, WEIGHTS)) == {("s", "right")}


def test_two_convolutions_without_a_common_ancestor_have_a_skip(parse: Parse) -> None:
    body = "(float[n, 16, 8, 8] x, float[n, 16, 8, 8] v) => (float[n, 16, 8, 8] z)"
    model = parse(f"{body} {{ a = Conv(x, w)\n b = Conv(v, w)\n s = Add(a, b)\n z = Relu(s) }}", WEIGHTS)
    assert skips(model) == {("s", "b")}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = Relu(x)\n b = Exp(x)\n s = Add(a, b)\n z = Relu(s)", "neither is a convolution"),
        ("a = Conv(x, w)\n s = Add(a, k)\n z = Relu(s)", "a constant is added"),
        ("a = Conv(x, w)\n p = GlobalAveragePool(x)\n s = Add(a, p)\n z = Relu(s)", "it broadcasts"),
        ("a = Conv(x, w)\n z = Add(a, x)", "the sum is an output"),
        ("a = Conv(x, w)\n s = Add(a, a)\n z = Relu(s)", "both are the same"),
        ("a = Conv(x, w)\n s = Mul(a, x)\n z = Relu(s)", "it is not an Add"),
    ],
)
def test_other_adds_are_left_alone(parse: Parse, body: str, why: str) -> None:
    model = parse(f"{HEAD} {{ {body} }}", {**WEIGHTS, "k": (1, 16, 8, 8)})
    assert skips(model) == set(), why


def test_a_convolution_that_is_not_quantized_has_no_skip(parse: Parse) -> None:
    model = parse(f"{HEAD} {{ a = Conv(x, w)\n s = Add(a, x)\n z = Relu(s) }}", WEIGHTS)
    assert list(skip_inputs(model.graph, set())) == []


BLOCKS = f"""{HEAD} {{ r = Relu(x)\n short = Conv(r, w)\n a = Conv(r, w)\n b = Relu(a)\n long = Conv(b, w)
    s = Add(short, long)\n t = Relu(s)\n c = Conv(t, w)\n d = Relu(c)\n e = Conv(d, w)\n u = Add(e, t)
    p = AveragePool<kernel_shape = [1, 1]>(u)\n f = Conv(p, w)\n g = Conv(p, w)\n v = Add(f, g)\n h = Relu(v)
    o = Concat<axis = 1>(h, p)\n k = Conv(o, two)\n z = Relu(k) }}"""
NODES = ["short", "a", "long", "s", "c", "e", "u", "p", "f", "g", "v", "k"]


@given(names=st.sets(st.sampled_from(NODES)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_other_tensor_is_quantized_if_nodes_are_kept(parse: Parse, names: set[str]) -> None:
    """A search keeps nodes with the scales that calibration found without them."""
    model = parse(BLOCKS, {**WEIGHTS, "two": (16, 32, 1, 1)})
    found = place(model, {name: Keep(pattern=name) for name in names})
    needed = {tensor for site in found.sites if site.axis is None for tensor in found.group(site.scale_from)}
    assert needed <= {*place(model).tensors()}


@pytest.mark.parametrize("kept", ["short", "long"])
def test_an_add_is_quantized_only_if_the_convolution_that_it_fuses_with_is(parse: Parse, kept: str) -> None:
    placement = place(parse(BLOCKS, {**WEIGHTS, "two": (16, 32, 1, 1)}), {kept: Keep(pattern=kept)})
    assert ("s" in {site.node.name for site in placement.sites}) == (kept == "long")
