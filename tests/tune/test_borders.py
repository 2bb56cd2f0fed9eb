"""Costs of keeping groups at their borders, on small networks whose tensors have known sizes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from trtopt.precision.passes.placement import place
from trtopt.tune.borders import _PER_BORDER_ELEMENT, Borders
from trtopt.tune.groups import groups
from trtopt.tune.search import Group

IMAGE = 16 * 8 * 8
"""Elements of each tensor of the networks."""
SAVING = 10.0


def network(body: str) -> ir.Model:
    """Return a network of 1x1 convolutions with the weight w, and of depthwise ones with d."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 19]> g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {{ {body} }}"""
    )
    for name, shape in (("w", (16, 16, 1, 1)), ("d", (16, 1, 1, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    proto = onnx.shape_inference.infer_shapes(proto)
    for node in proto.graph.node:
        node.name = node.output[0]
    return ir.from_proto(proto)


def borders(body: str) -> tuple[Borders, dict[str, Group]]:
    model = network(body)
    found = groups(place(model), lambda _: SAVING)
    return Borders(model, found, {}), {each.name: each for each in found}


CHAIN = "a = Conv(x, w)\n r = Relu(a)\n b = Conv(r, w)\n m = Clip(b)\n c = Conv(m, w)\n y = Conv(c, w)"


@pytest.mark.parametrize(
    ("group", "kept", "crossed"),
    [("a", "", 1), ("b", "", 2), ("y", "", 1), ("b", "a", 0), ("b", "c", 0), ("b", "ac", -2), ("c", "a", 2)],
)
def test_each_tensor_between_a_kept_group_and_a_quantized_one_costs(group: str, kept: str, crossed: int) -> None:
    found, by_name = borders(CHAIN)
    assert found.of(by_name[group], kept) == SAVING + _PER_BORDER_ELEMENT * crossed * IMAGE


def test_a_tensor_that_two_groups_read_costs_once() -> None:
    body = "a = Conv(x, w)\n r = Relu(a)\n b = Conv(r, w)\n s = Add(b, r)\n c = Conv(s, w)\n y = Relu(c)"
    found, by_name = borders(body)
    assert {*by_name} == {"a", "b", "s", "c"}
    assert found.of(by_name["a"], ()) == SAVING + _PER_BORDER_ELEMENT * IMAGE


def test_what_is_not_quantized_anyway_has_no_border() -> None:
    found, by_name = borders("a = Conv(x, w)\n s = Sigmoid(a)\n b = Conv(s, w)\n y = Conv(b, w)")
    assert found.of(by_name["a"], ()) == SAVING


SILU = "a = Conv(x, w)\n b = Conv<group = 16>(a, d)\n s = Sigmoid(b)\n r = Mul(b, s)\n c = Conv(r, w)\n y = Conv(c, w)"
READ_TWICE = "b = Conv<group = 16>(x, d)\n r = Relu(b)\n c = Conv(r, w)\n s = Add(c, r)\n y = Conv(s, w)"
DEPTHWISE = "a = Conv(x, w)\n b = Conv<group = 16>(a, d)\n r = Relu(b)\n c = Conv(r, w)\n y = Conv(c, w)"
TWO = "a = Conv(x, w)\n b = Conv<group = 16>(a, d)\n c = Conv<group = 16>(b, d)\n y = Conv(c, w)"


def test_a_depthwise_convolution_costs_with_what_reads_it() -> None:
    found, by_name = borders(DEPTHWISE)
    assert found.of(by_name["c"], ()) == 2 * SAVING + _PER_BORDER_ELEMENT * 2 * IMAGE
    assert found.of(by_name["b"], ("c",)) == 0


@pytest.mark.parametrize(
    ("body", "kept", "whole"),
    [
        (DEPTHWISE, "c", "bc"),
        (DEPTHWISE, "a", "a"),
        (DEPTHWISE, "b", "b"),
        (TWO, "y", "bcy"),
        (SILU, "c", "bc"),
        (READ_TWICE, "c", "bc"),
    ],
    ids=["its reader", "not what it reads", "itself", "two in a row", "behind a SiLU", "one of two readers"],
)
def test_a_choice_is_completed_by_the_depthwise_convolutions_that_it_reads(body: str, kept: str, whole: str) -> None:
    found, by_name = borders(body)
    names = {node for group in found.whole([by_name[name] for name in kept]) for node in group.nodes}
    assert names & {*"abcy"} == {*whole}


@given(order=st.permutations("abcy"), body=st.sampled_from([CHAIN, DEPTHWISE, TWO]))
def test_the_cost_of_groups_does_not_depend_on_their_order(order: list[str], body: str) -> None:
    found, by_name = borders(body)
    costs = [found.of(by_name[name], order[:number]) for number, name in enumerate(order)]
    assert sum(costs) == len(order) * SAVING


def test_islands_are_the_groups_that_are_connected() -> None:
    found, by_name = borders(CHAIN)
    islands = found.islands([by_name[name] for name in ("y", "a", "b")])
    assert {frozenset(group.name for group in island) for island in islands} == {frozenset("ab"), frozenset("y")}
