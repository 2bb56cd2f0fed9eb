"""Models that are not in FP32: float16, bfloat16, float64 and mixed types become FP32 first, and the run says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from damaging import lstm
from onnx import TensorProto, helper, numpy_helper
from support import DIGITS, EVAL, Done

from trtopt.graph.widen import in_fp32, is_in_fp32

Cli = Callable[..., Done]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def write(path: Path, nodes: list[onnx.NodeProto], inner: np.dtype, outer: np.dtype) -> Path:
    """Write a net of `nodes` with weights of the type `inner`, and input `x` and output `y` of the type `outer`."""
    rng = np.random.default_rng(0)
    shapes = {"w0": (32, 16, 3, 3), "b0": (32,), "w1": (32, 32, 3, 3)}
    weights = [numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(inner), name) for name, shape in shapes.items()]
    code = helper.np_dtype_to_tensor_dtype(outer)
    inputs, outputs = (
        helper.make_tensor_value_info(name, code, ["n", size, 8, 8]) for name, size in (("x", 16), ("y", 32))
    )
    graph = helper.make_graph(nodes, "net", [inputs], [outputs], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def two_convolutions(first: str = "x", last: str = "y") -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", [first, "w0", "b0"], ["a"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w1"], [last], "conv1", pads=[1] * 4),
    ]


def autocast(dtype: np.dtype) -> list[onnx.NodeProto]:
    code = helper.np_dtype_to_tensor_dtype(dtype)
    return [
        helper.make_node("Cast", ["x"], ["narrow"], "cast0", to=code),
        *two_convolutions("narrow", "result"),
        helper.make_node("Cast", ["result"], ["y"], "cast1", to=TensorProto.FLOAT),
    ]


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize(
    ("inner", "outer", "said"),
    [
        (np.float16, np.float16, "7 float16 tensors"),
        (np.float64, np.float64, "7 float64 tensors"),
        (np.float16, np.float32, "float16 tensors"),
        (BFLOAT16, np.float32, "bfloat16 tensors"),
    ],
    ids=["float16", "float64", "float16 autocast", "bfloat16 autocast"],
)
def test_converts_to_float32_first(
    inner: type, outer: type, said: str, precision: str, cli: Cli, tmp_path: Path
) -> None:
    nodes = two_convolutions() if inner is outer else autocast(np.dtype(inner))
    model = write(tmp_path / "net.onnx", nodes, np.dtype(inner), np.dtype(outer))
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.random.default_rng(1).normal(size=(34, 16, 8, 8)).astype(outer))
    run = tmp_path / "run"
    done = cli("convert", model, "-p", precision, "--calib", samples, "--backend=onnxruntime", "-o", run)
    assert done.code == 0, done.err
    assert said in done.out
    assert "converted to float32 first" in done.out
    decisions = json.loads((run / "report.json").read_text())["typed"]["decisions"]
    assert [decision["precision"] for decision in decisions if decision["op"] == "Conv"] == [precision] * 2
    typed = onnx.load(run / "typed.onnx").graph
    assert typed.input[0].type.tensor_type.elem_type == helper.np_dtype_to_tensor_dtype(np.dtype(outer))
    assert typed.output[0].type.tensor_type.elem_type == helper.np_dtype_to_tensor_dtype(np.dtype(outer))


def test_the_casts_of_an_autocast_model_disappear(tmp_path: Path) -> None:
    model = write(tmp_path / "net.onnx", autocast(np.dtype(np.float16)), np.dtype(np.float16), np.dtype(np.float32))
    in_fp32(model, tmp_path / "fp32.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node] == ["Conv", "Relu", "Conv", "Cast"]


def test_bfloat16_inputs_and_outputs_become_float32(tmp_path: Path) -> None:
    model = write(tmp_path / "net.onnx", two_convolutions(), BFLOAT16, BFLOAT16)
    in_fp32(model, tmp_path / "fp32.onnx")
    graph = onnx.load(tmp_path / "fp32.onnx").graph
    assert {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]} == {TensorProto.FLOAT}


def test_float64_beyond_the_range_of_float32_stays_finite_and_nonzero(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "limits"], ["y"], "add")]
    info = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [3]) for name in "xy"]
    limits = numpy_helper.from_array(np.array([-1e300, 1e-300, np.inf]), "limits")
    graph = helper.make_graph(nodes, "net", info[:1], info[1:], [limits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    in_fp32(tmp_path / "a.onnx", tmp_path / "b.onnx")
    values = numpy_helper.to_array(onnx.load(tmp_path / "b.onnx").graph.initializer[0])
    assert values.dtype == np.float32
    assert np.array_equal(values, [-np.finfo(np.float32).max, np.finfo(np.float32).tiny, np.inf])


def test_a_model_in_float32_stays_as_it_is() -> None:
    assert is_in_fp32(DIGITS)


def test_a_run_that_converted_nothing_says_so_in_its_first_and_last_line(cli: Cli, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.random.default_rng(1).normal(size=(40, 6, 8)).astype(np.float32))
    model, run = lstm(tmp_path / "lstm.onnx"), tmp_path / "run"
    done = cli("convert", model, "-p", "int8", "--calib", samples, "--backend=onnxruntime", "-o", run)
    first, *_, last = done.out.strip().splitlines()
    assert "nothing was converted to int8" in first
    assert "nothing was converted to int8" in last


def test_a_run_that_converted_something_does_not(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli("convert", DIGITS, "-p", "fp16", "--data", EVAL, "--backend=onnxruntime", "-o", run)
    assert "nothing" not in done.out
