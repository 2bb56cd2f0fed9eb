"""Nodes that the real parser rejects: reported with their neighbors and fixes, before any calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import Done

from trtopt.engine.trt import refusal
from trtopt.types import Rejection


@pytest.fixture
def unsupported(tmp_path: Path) -> Path:
    """Return a model of Relu, an operator of a domain that TensorRT does not know, and Abs."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("Wobble", ["a"], ["b"], "strange", domain="com.example"),
        helper.make_node("Abs", ["b"], ["y"], "last"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("com.example", 3)]
    path = tmp_path / "strange.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=imports), path)
    return path


@pytest.fixture
def deform(tmp_path: Path) -> Path:
    """Return a model with Det, an ONNX operator that TensorRT's parser does not support."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("Det", ["a"], ["y"], "determinant"),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]),
    ]
    path = tmp_path / "det.onnx"
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
    return path


def test_a_rejected_node_is_explained_with_its_neighbors(unsupported: Path) -> None:
    rejection = Rejection(node="strange", op="Wobble", code="UNSUPPORTED", message="no plugin")
    (only,) = refusal.explain(unsupported, [rejection])
    assert (only.node, only.op, only.domain, only.opset) == ("strange", "Wobble", "com.example", 3)
    assert (only.before, only.after) == (("Relu first",), ("Abs last",))
    assert only.helps[0] == "Load a TensorRT plugin named Wobble"
    assert str(only) == (
        "Wobble node strange (domain com.example opset 3; after Relu first, before Abs last): no plugin [UNSUPPORTED]"
    )


def test_a_node_without_a_name_is_found_by_its_index(unsupported: Path) -> None:
    (only,) = refusal.explain(unsupported, [Rejection(node="#1", op="Wobble", code="X", message="m")])
    assert only.node == "strange"


def test_a_node_that_is_not_in_the_model_is_still_reported(unsupported: Path) -> None:
    (only,) = refusal.explain(unsupported, [Rejection(node="gone", op="Wobble", code="X", message="m")])
    assert (only.node, only.before, only.opset) == ("gone", (), 19)


def test_an_older_opset_is_proposed_for_an_operator_that_exporters_decompose(tmp_path: Path) -> None:
    names = ["x", "scale", "bias"]
    node = helper.make_node("GroupNormalization", names, ["y"], "norm", num_groups=2)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in [*names, "y"]]
    graph = helper.make_graph([node], "g", values[:3], values[3:])
    path = tmp_path / "norm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    (only,) = refusal.explain(path, [Rejection(node="norm", op="GroupNormalization", code="X", message="m")])
    assert only.helps[0] == "Export with opset 17, where GroupNormalization is decomposed into simpler operators"


def test_inspect_shows_what_tensorrt_refuses(deform: Path, cli: Callable[..., Done]) -> None:
    done = cli("inspect", deform, "--tensorrt")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "does not support 1 node" in text
    for part in ("Det", "determinant", "opset 19", "Relu first", "onnxruntime"):
        assert part in text, part
    refused = json.loads(cli("inspect", deform, "--tensorrt", "--format", "json").out)["refused"]
    assert [(each["op"], each["before"]) for each in refused] == [("Det", ["Relu first"])]


def test_inspect_says_that_tensorrt_takes_a_model(conv_net: Path, cli: Callable[..., Done]) -> None:
    assert "all operators are supported" in cli("inspect", conv_net, "--tensorrt").out
    assert "all operators are supported" not in cli("inspect", conv_net).out


def test_convert_stops_before_calibration(deform: Path, cli: Callable[..., Done], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3, 3), np.float32))
    np.savez(tmp_path / "x.npz", x=np.ones((1, 2, 3, 3), np.float32))
    done = cli("convert", deform, "-p", "int8", "--calib", tmp_path / "x.npz", "-o", tmp_path / "run")
    assert done.code == 2
    assert "Det node determinant (opset 19; after Relu first)" in done.err
    assert "calibrate" not in done.err
