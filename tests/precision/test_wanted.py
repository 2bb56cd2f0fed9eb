"""`--keep`: patterns, what they match, and what is kept."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from trtopt.errors import UsageError
from trtopt.flags import keeps, lowered_only
from trtopt.precision import Request, precision
from trtopt.precision.passes.wanted import resolve
from trtopt.types import CalibrationTable, Keep, Only

Parse = Callable[..., ir.Model]
NET = """(float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {
    block1_a = Conv(x, w)\n block1_b = Relu(block1_a)\n block2_a = Conv(block1_b, w)\n e = Exp(block2_a)
    y = Conv(e, w) }"""
WEIGHTS = {"w": (16, 16, 1, 1)}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("block2_a", {"block2_a"}),
        ("block1_*", {"block1_a", "block1_b"}),
        ("Conv", {"block1_a", "block2_a", "y"}),
        ("first", {"block1_a"}),
        ("last", {"y"}),
        ("block:block1", {"block1_a", "block1_b"}),
    ],
)
def test_a_pattern_names_nodes(parse: Parse, pattern: str, names: set[str]) -> None:
    assert resolve(parse(NET, WEIGHTS), [Keep(pattern=pattern)]).keys() == names


def test_a_node_of_exactly_that_name_comes_before_an_operator(parse: Parse) -> None:
    model = parse(NET, WEIGHTS)
    next(node for node in model.graph if node.name == "block2_a").name = "Conv"
    assert resolve(model, [Keep(pattern="Conv")]).keys() == {"Conv"}


def test_an_unknown_pattern_is_refused_with_the_nearest_name(parse: Parse) -> None:
    with pytest.raises(UsageError, match="--keep blok2_a") as error:
        resolve(parse(NET, WEIGHTS), [Keep(pattern="blok2_a")])
    assert "Did you mean block2_a?" in error.value.fix


@pytest.mark.parametrize(("keep", "expected"), [("", "fp16"), ("fp32", "fp32")])
def test_a_kept_node_is_not_quantized(parse: Parse, keep: str, expected: str) -> None:
    model = parse(NET, WEIGHTS)
    table = CalibrationTable(method="minmax", scales={"x": 0.1, "block1_b": 0.1, "e": 0.1})
    request = Request(table=table, keep=resolve(model, [Keep(pattern="block2_a", precision=keep)]))
    decisions = {d.node: d for d in precision("int8").apply(model, request)}
    assert (decisions["block2_a"].precision, decisions["block2_a"].reason) == (expected, "kept by --keep")
    assert decisions["block1_a"].precision == decisions["y"].precision == "int8"
    conv = next(node for node in model.graph if node.name == "block2_a")
    assert all(value is None or value.producer() is None or value.producer().op_type != "DequantizeLinear"
               for value in conv.inputs)  # fmt: skip


def test_a_kept_node_stays_in_fp32_beside_fp16(parse: Parse) -> None:
    model = parse(NET, WEIGHTS)
    kept = resolve(model, [Keep(pattern="e", precision="fp32")])
    decisions = {d.node: d for d in precision("fp16").apply(model, Request(keep=kept))}
    assert (decisions["e"].precision, decisions["e"].reason) == ("fp32", "kept by --keep")
    assert decisions["y"].precision == "fp16"


@pytest.mark.parametrize(
    ("flag", "precision", "rest", "expected"),
    [
        ("a", "int8", "fp16", Keep(pattern="a")),
        ("a=fp16", "int8", "fp16", Keep(pattern="a")),
        ("a=fp32", "int8", "fp16", Keep(pattern="a", precision="fp32")),
        ("a", "int8", "fp32", Keep(pattern="a", precision="fp32")),
        ("a", "fp16", "fp16", Keep(pattern="a", precision="fp32")),
        ("a=b", "fp16", "fp16", Keep(pattern="a=b", precision="fp32")),
    ],
)
def test_a_flag_is_parsed(flag: str, precision: str, rest: str, expected: Keep) -> None:
    assert keeps([flag], precision, rest) == (expected,)


@pytest.mark.parametrize(
    ("flag", "precision", "why"),
    [
        ("a=bf16", "int8", "cannot be kept in bf16"),
        ("a", "fp32", "every node is in FP32"),
        ("=fp32", "int8", "no node"),
    ],
)
def test_a_flag_that_means_nothing_is_refused(flag: str, precision: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        keeps([flag], precision, "fp16")


def test_only_keeps_every_node_that_no_pattern_names(parse: Parse) -> None:
    kept = resolve(parse(NET, WEIGHTS), [], Only(patterns=("block1_a", "Exp")))
    assert kept.keys() == {"block1_b", "block2_a", "y"}
    assert {keep.reason for keep in kept.values()} == {"not named by --only"}


def test_a_node_that_only_names_can_still_be_kept(parse: Parse) -> None:
    kept = resolve(parse(NET, WEIGHTS), [Keep(pattern="y", precision="fp32")], Only(patterns=("Conv",)))
    assert kept.keys() == {"block1_b", "e", "y"}
    assert kept["y"].reason == "kept by --keep"


def test_an_unknown_name_of_only_is_refused_with_the_nearest(parse: Parse) -> None:
    with pytest.raises(UsageError, match=r"--only block2_b: no node .* Did you mean block2_a"):
        resolve(parse(NET, WEIGHTS), [], Only(patterns=("block2_b",)))


@pytest.mark.parametrize(("precision_name", "others"), [("int8", "fp16"), ("fp16", "fp32")])
def test_only_the_named_nodes_are_lowered(parse: Parse, precision_name: str, others: str) -> None:
    model = parse(NET, WEIGHTS)
    table = CalibrationTable(method="minmax", scales={"block1_b": 0.1})
    keep = resolve(model, [], lowered_only(["block2_a"], precision_name))
    decisions = precision(precision_name).apply(model, Request(keep=keep, table=table))
    assert {each.node: each.precision for each in decisions if each.op == "Conv"} == {
        "block1_a": others,
        "block2_a": precision_name,
        "y": others,
    }


@pytest.mark.parametrize(("flags", "precision_name"), [([" "], "int8"), (["Conv"], "fp32")])
def test_an_only_that_cannot_be_meant_is_refused(flags: list[str], precision_name: str) -> None:
    with pytest.raises(UsageError, match="--only"):
        lowered_only(flags, precision_name)
