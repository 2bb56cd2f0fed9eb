"""Rule 7: the two products of attention are not quantized under a mask that is computed at run time."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from trtopt.precision.passes.attention import REASON, masked_products
from trtopt.precision.passes.placement import place

Parse = Callable[..., ir.Model]
HEAD = """(float[2, 32, 32] q, float[2, 32, 32] k, float[2, 32, 32] v, float[2, 1, 32] m, bool[2, 1, 32] c)
    => (float[2, 32, 32] y) <float eight = {8}, float low = {-1e9}>"""


def attention(parse: Parse, body: str) -> ir.Model:
    return parse(f"{HEAD} {{ t = Transpose<perm = [0, 2, 1]>(k)\n s = MatMul(q, t)\n {body} }}", {"bias": (1, 32, 32)})


MASKED = {
    "added": "a = Add(s, m)\n p = Softmax(a)\n y = MatMul(p, v)",
    "added from the left": "a = Add(m, s)\n p = Softmax(a)\n y = MatMul(p, v)",
    "scaled, then added": "d = Div(s, eight)\n a = Add(d, m)\n p = Softmax(a)\n y = MatMul(p, v)",
    "added, then scaled": "a = Add(s, m)\n d = Mul(eight, a)\n p = Softmax(a)\n y = MatMul(p, v)",
    "computed": "o = Neg(m)\n b = Mul(o, low)\n a = Add(s, b)\n p = Softmax(a)\n y = MatMul(p, v)",
    "chosen": "a = Where(c, s, low)\n p = Softmax(a)\n y = MatMul(p, v)",
    "bias and mask": "b = Add(s, bias)\n a = Add(b, m)\n p = Softmax(a)\n y = MatMul(p, v)",
    "weights chosen again": "a = Add(s, m)\n p = Softmax(a)\n w = Where(c, p, low)\n y = MatMul(w, v)",
}
UNMASKED = {
    "no mask": "p = Softmax(s)\n y = MatMul(p, v)",
    "scaled": "d = Div(s, eight)\n p = Softmax(d)\n y = MatMul(p, v)",
    "a constant bias": "a = Add(s, bias)\n p = Softmax(a)\n y = MatMul(p, v)",
    "a nonlinearity between": "a = Add(s, m)\n e = Tanh(a)\n p = Softmax(e)\n y = MatMul(p, v)",
    "no softmax": "a = Add(s, m)\n p = Tanh(a)\n y = MatMul(p, v)",
}


@pytest.mark.parametrize("body", MASKED.values(), ids=MASKED)
def test_products_under_a_mask_stay_in_16_bits(parse: Parse, body: str) -> None:
    model = attention(parse, body)
    assert {node.name: reason for node, reason in masked_products(model.graph).items()} == {"s": REASON, "y": REASON}
    placement = place(model)
    assert placement.sites == ()
    assert {d.reason for d in placement.decisions() if d.op == "MatMul"} == {REASON}


@pytest.mark.parametrize("body", UNMASKED.values(), ids=UNMASKED)
def test_products_without_a_mask_are_quantized(parse: Parse, body: str) -> None:
    model = attention(parse, body)
    assert masked_products(model.graph) == {}
    assert {d.node for d in place(model).decisions() if d.precision == "int8"} == {"s", "y"}


def test_a_softmax_over_a_linear_layer_is_not_attention(parse: Parse) -> None:
    model = parse("(float[4, 32] x, float[4, 32] m) => (float[4, 32] p)"
                  "{ s = MatMul(x, w)\n a = Add(s, m)\n p = Softmax(a) }", {"w": (32, 32)})  # fmt: skip
    assert masked_products(model.graph) == {}
    assert {d.node for d in place(model).decisions() if d.precision == "int8"} == {"s"}


def test_a_graph_with_exponentially_many_paths_is_searched_in_linear_time(parse: Parse) -> None:
    steps = "\n".join(f"a{i + 1} = Add(a{i}, a{i})" for i in range(60))
    tail = "\n".join(f"b{i + 1} = Where(c, b{i}, b{i})" for i in range(60))
    body = f"a0 = Exp(m)\n {steps}\n n = Add(s, a60)\n b0 = Softmax(n)\n {tail}\n y = MatMul(b60, v)"
    assert {node.name for node in masked_products(attention(parse, body).graph)} == {"s", "y"}
