"""The proof of a batch axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt.graph.file import describe
from trtopt.serve.axes import prove
from trtopt.types import ShapeRange

RANGE = ShapeRange(name="x", min=(1, 4), opt=(4, 4), max=(8, 4))
AXIS = numpy_helper.from_array(np.array([0], np.int64), "axis")
ONE = numpy_helper.from_array(np.array([1], np.int64), "one")


def graph(path: Path, *nodes: onnx.NodeProto, out: list[int | str | None], dtype: int = TensorProto.FLOAT) -> Path:
    made = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", dtype, out)],
        [AXIS, ONE],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_rows_that_do_not_mix_are_a_batch(tmp_path: Path) -> None:
    model = describe(graph(tmp_path / "a.onnx", helper.make_node("Softmax", ["x"], ["y"]), out=["n", 4]))
    assert prove(model, [RANGE]).largest == 8


@pytest.mark.parametrize(
    ("node", "out", "why"),
    [
        (helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0), [4], "output y has no batch axis"),
        (helper.make_node("Softmax", ["x"], ["y"], axis=0), ["n", 4], "output y of one sample depends on the other"),
        (helper.make_node("CumSum", ["x", "one0"], ["y"]), ["n", 4], "output y of one sample depends on the other"),
        (helper.make_node("Transpose", ["x"], ["y"]), [4, "n"], "output y has no batch axis"),
    ],
    ids=["reduced", "mixed", "accumulated", "transposed"],
)
def test_a_graph_that_joins_samples_has_no_batch_axis(
    tmp_path: Path, node: onnx.NodeProto, out: list[int | str | None], why: str
) -> None:
    nodes = [node]
    if "one0" in node.input:
        nodes = [helper.make_node("Squeeze", ["axis"], ["one0"]), node]
    found = prove(describe(graph(tmp_path / "a.onnx", *nodes, out=out)), [RANGE])
    assert found.largest == 0
    assert why in found.why


def test_shapes_that_depend_on_values_are_no_batch(tmp_path: Path) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"])
    path = graph(tmp_path / "a.onnx", node, out=[2, None], dtype=TensorProto.INT64)
    assert prove(describe(path), [RANGE]).largest == 0


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (ShapeRange(name="x", min=(4, 4), opt=(4, 4), max=(4, 4)), "the first dimension of input x has a fixed size"),
        (ShapeRange(name="x", min=(2, 4), opt=(4, 4), max=(8, 4)), "the smallest batch is 2"),
    ],
)
def test_a_single_request_must_be_a_batch(tmp_path: Path, entry: ShapeRange, why: str) -> None:
    model = describe(graph(tmp_path / "a.onnx", helper.make_node("Relu", ["x"], ["y"]), out=["n", 4]))
    found = prove(model, [entry])
    assert found.largest == 0
    assert why in found.why
