"""A quantized network with switches: what they turn on, and that nothing is left on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.formats import INT8
from trtopt.graph.prepare import save
from trtopt.precision import Request, precision
from trtopt.precision.passes.switches import SWITCHES, Switch, Switched, switched
from trtopt.types import CalibrationTable, Keep

Parse = Callable[..., ir.Model]
NET = """(float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {
    a = Conv(x, w0, b0)\n c = Clip(a, zero, six)\n y = Conv(c, w1) }"""
WEIGHTS = {"w0": (16, 16, 1, 1), "b0": (16,), "w1": (16, 16, 1, 1), "zero": (), "six": ()}
FEED = {"x": np.random.default_rng(0).normal(0, 1, (2, 16, 8, 8)).astype(np.float32)}


@pytest.fixture
def model(parse: Parse) -> ir.Model:
    model = parse(NET, WEIGHTS)
    for name, number in (("zero", 0.0), ("six", 1.0)):
        model.graph.initializers[name].const_value = ir.tensor(np.float32(number), name=name)
    return model


@pytest.fixture
def request_of(model: ir.Model) -> Request:
    table = CalibrationTable(method="minmax", scales={"x": 0.02, "c": 1 / 127})
    means = {("x", 1): np.full(16, 0.1), ("c", 1): np.full(16, 0.4)}
    return Request(rest="fp32", table=table, means=means)


def outputs(model: ir.Model, path: Path, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    save(model, path)
    return np.asarray(open_runner(path).run(feed)["y"])


def chosen(board: Switched, path: Path, choice: np.ndarray) -> np.ndarray:
    return outputs(board.model, path, {**FEED, SWITCHES: choice})


@pytest.mark.parametrize("kept", [(), ("a",), ("y",), ("a", "y")])
def test_a_choice_computes_what_the_network_computes_in_which_these_nodes_are_kept(
    model: ir.Model, request_of: Request, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    board = switched(model, request_of, INT8)
    plain = model.clone()
    keep = {name: Keep(pattern=name) for name in kept}
    precision("int8").apply(plain, Request(rest="fp32", table=request_of.table, means=request_of.means, keep=keep))
    expected = outputs(plain, tmp_path / "plain.onnx", FEED)
    found = chosen(board, tmp_path / "switched.onnx", board.choice(kept))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    if not kept:
        exact = outputs(model.clone(), tmp_path / "exact.onnx", FEED)
        assert np.square(found - expected).sum() < 0.05 * np.square(expected - exact).sum()


def test_with_every_switch_off_the_network_is_the_exact_one(
    model: ir.Model, request_of: Request, tmp_path: Path
) -> None:
    board = switched(model, request_of, INT8)
    exact = outputs(model.clone(), tmp_path / "exact.onnx", FEED)
    np.testing.assert_allclose(
        chosen(board, tmp_path / "off.onnx", board.only(())), exact, rtol=0, atol=1e-5 * np.abs(exact).max()
    )


def test_parts_are_switched_apart(model: ir.Model, request_of: Request, tmp_path: Path) -> None:
    board = switched(model, request_of, INT8)
    assert {Switch("a", 0, "clip"), Switch("a", 0, "round"), Switch("a", 1, "weight"), Switch("a", -1, "bias")} <= {
        *board.switches
    }
    results = {
        part: chosen(board, tmp_path / f"{part}.onnx", board.only(["a"], [part])) for part in ("weight", "clip", "bias")
    }
    assert not np.array_equal(results["weight"], results["clip"])
    assert not np.array_equal(results["weight"], results["bias"])
