"""Clip(0, c) before a QuantizeLinear that saturates at c becomes Relu, for its quantized consumers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.precision import Request, precision
from trtopt.types import CalibrationTable, Decision

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]

BODY = """(float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y{extra}) <float low = {{{low}}}, float high = {{{high}}}> {{
    h = Conv(x, w)\n c = Clip(h, low, high)\n y = Conv(c, w){more} }}"""
WEIGHTS = {"w": (16, 16, 1, 1)}


def typed(parse: Parse, scale: float, low: float = 0, high: float = 6, extra: str = "", more: str = "") -> ir.Model:
    return parse(BODY.format(low=low, high=high, extra=extra, more=more), WEIGHTS)


def convert(model: ir.Model, scale: float, name: str = "int8", rest: str = "fp32") -> dict[str, Decision]:
    table = CalibrationTable(method="minmax", scales={"x": 0.05, "c": scale})
    return {d.node: d for d in precision(name).apply(model, Request(rest=rest, table=table))}


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_a_relu6_before_a_q_that_saturates_at_6_becomes_a_relu(parse: Parse, name: str, rest: str) -> None:
    model = typed(parse, 6 / 127)
    decisions = convert(model, 6 / 127, name, rest)
    assert "Clip" not in operators(model)
    assert operators(model).count("Relu") == 1
    assert decisions["c"].op == "Relu"
    assert decisions["c"].reason.startswith("Clip written as Relu")
    assert {node.name for node in model.graph if node.op_type == "Relu"} == {"c"}


def test_a_clip_that_cuts_off_below_the_largest_code_stays(parse: Parse) -> None:
    model = typed(parse, 0.05)
    convert(model, 6.1 / 126.4)
    assert "Clip" in operators(model)


def test_a_clip_with_another_lower_bound_stays(parse: Parse) -> None:
    model = typed(parse, 0.05, low=-1)
    convert(model, 0.03)
    assert "Clip" in operators(model)


def test_bounds_of_one_element_are_bounds(parse: Parse) -> None:
    body = BODY.format(low=0, high=6, extra="", more="").replace("float low = {0}", "float[1] low = {0}")
    model = parse(body.replace("float high = {6}", "float[1] high = {6}"), WEIGHTS)
    convert(model, 6 / 127)
    assert "Clip" not in operators(model)


def test_other_consumers_keep_the_clip(parse: Parse) -> None:
    model = typed(parse, 0.04, extra=", float[n, 16, 8, 8] e", more="\n e = Exp(c)")
    decisions = convert(model, 0.04)
    exp = next(node for node in model.graph if node.op_type == "Exp")
    assert exp.inputs[0].producer().op_type == "Clip"
    assert {"c", "c/Relu"} <= decisions.keys()


@pytest.mark.parametrize("scale", [0.01, 0.04, 6 / 127])
def test_the_outputs_are_the_same_numbers(parse: Parse, write: Write, scale: float) -> None:
    feed = {"x": np.random.default_rng(1).normal(0, 8, (4, 16, 8, 8)).astype(np.float32)}
    # A consumer in floating point keeps the Clip alone in the second model: the numbers behind the Q must agree.
    outputs = []
    for clip in ("Clip(h, low, high)", "Min(p, high)\n p = Relu(h)"):
        lines = BODY.format(low=0, high=6, extra="", more="").replace("c = Clip(h, low, high)", "c = " + clip)
        if "p = Relu" in clip:
            lines = lines.replace("c = Min(p, high)\n p = Relu(h)", "p = Relu(h)\n c = Min(p, high)")
        model = parse(lines, WEIGHTS)
        convert(model, scale)
        outputs.append(open_runner(write(model)).run(feed)["y"])
    np.testing.assert_array_equal(*outputs)
