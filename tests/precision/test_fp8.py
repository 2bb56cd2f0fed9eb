"""FP8: E4M3 codes, one scale per tensor, accepted by ONNX's checker and by TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt import builder as tensorrt
from trtopt.events import silent
from trtopt.graph.file import describe
from trtopt.precision import Request, precision
from trtopt.precision.fp8 import FORMAT as FP8
from trtopt.precision.passes.qdq import quantize
from trtopt.types import CalibrationTable, ShapeRange, TypedModel

Parse = Callable[..., ir.Model]
BODY = "(float[n, 16, 8, 8] x) => (float[n, 32, 8, 8] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(a) }"


def typed(parse: Parse, write: Callable[[ir.Model], Path]) -> TypedModel:
    model = parse(BODY, {"w": (32, 16, 3, 3), "b": (32,)})
    table = CalibrationTable(method="minmax", scales={"x": 4 / 127})
    decisions = precision("fp8").apply(model, Request(table=table))
    return TypedModel(onnx=describe(write(model)), precision="fp8", rest="fp16", decisions=decisions)


@given(st.floats(-1e4, 1e4, width=32))
def test_codes_are_the_nearest_e4m3_number_and_saturate(x: float) -> None:
    code = quantize(np.array([x], np.float32), 1.0, FP8).astype(np.float32)[0]
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    assert abs(code - x) == np.abs(numbers - np.float32(x)).min()


def test_weights_are_stored_in_e4m3_with_one_scale(parse: Parse, write: Callable[[ir.Model], Path]) -> None:
    proto = onnx.load(typed(parse, write).onnx.path)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    codes = next(t for t in tensors.values() if list(t.dims) == [32, 16, 3, 3])
    assert codes.data_type == onnx.TensorProto.FLOAT8E4M3FN
    scales = [tensors[node.input[1]] for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    assert all(list(scale.dims) == [] for scale in scales)


def test_the_typed_graph_has_an_sqnr_of_more_than_22_db(parse: Parse, write: Callable[[ir.Model], Path]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 16, 8, 8)).astype(np.float32)
    expected = open_runner(write(parse(BODY, {"w": (32, 16, 3, 3), "b": (32,)}))).run({"x": x})["y"]
    quantized = open_runner(typed(parse, write).onnx.path).run({"x": x})["y"]
    assert 10 * np.log10((expected**2).sum() / ((quantized - expected) ** 2).sum()) > 22


def test_tensorrt_builds_it_and_the_audit_finds_fp8(
    parse: Parse, write: Callable[[ir.Model], Path], tmp_path: Path
) -> None:
    shape = ShapeRange(name="x", min=(1, 16, 8, 8), opt=(2, 16, 8, 8), max=(4, 16, 8, 8))
    engine = tensorrt.build(
        tensorrt.find(),
        typed(parse, write),
        (shape,),
        tensorrt.BuildPlan(),
        tmp_path / "model.engine",
        emit=silent,
    )
    assert engine.audit["fp8"] == 1
