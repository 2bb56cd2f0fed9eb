"""Engines of a real TensorRT on a GPU: built, run, audited, and compared with their graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt.engine.cuda.driver import read_driver
from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt import apart
from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt.versions import PRODUCT
from trtopt.errors import BuildError
from trtopt.events import Progress, Warned, silent
from trtopt.graph.file import describe
from trtopt.graph.portable import for_onnxruntime
from trtopt.graph.prepare import infer_shapes, save
from trtopt.precision import Request, precision
from trtopt.types import CalibrationTable, Engine, ShapeRange, TypedModel

pytestmark = pytest.mark.gpu

NO_CUDNN = tensorrt.BuildPlan(tactic_sources="-CUDNN")
NET = """<ir_version: 10, opset_import: ["": 19]> g (float[n, 16, 16, 16] x) => (float[n, 32] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)\n b = Relu(a)\n c = Conv<pads = [1, 1, 1, 1]>(b, w2)\n s = Add(c, b)
    r = Relu(s)\n e = Sigmoid(r)\n g = GlobalAveragePool(e)\n f = Flatten(g)\n y = Gemm(f, w3) }"""
SHAPES = {"w1": (32, 16, 3, 3), "w2": (32, 32, 3, 3), "w3": (32, 32)}
RANGES = (ShapeRange(name="x", min=(1, 16, 16, 16), opt=(4, 16, 16, 16), max=(8, 16, 16, 16)),)


@pytest.fixture(scope="module")
def trt() -> tensorrt.TensorRT:
    return tensorrt.find(PRODUCT)


def images(n: int = 8, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 16, 16, 16)).astype(np.float32)


def typed(folder: Path, name: str, rest: str = "fp16", keep_fp32: str = "") -> TypedModel:
    proto = onnx.parser.parse_model(NET)
    random = np.random.default_rng(0)
    for weight, shape in SHAPES.items():
        array = (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, weight))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}/{node.op_type}"
    onnx.save(proto, folder / "fp32.onnx")
    model = ir.from_proto(proto)
    infer_shapes(model)
    scales = {"x": 4 / 127, "b": 4 / 127, "r": 5 / 127, "e": 1 / 127, "g": 1 / 127}
    ranges = {keep_fp32: 1e6} if keep_fp32 else {}
    table = CalibrationTable(method="minmax", scales=scales)
    decisions = precision(name).apply(model, Request(rest=rest, table=table, ranges=ranges))
    for_onnxruntime(model)
    save(model, folder / "typed.onnx")
    return TypedModel(onnx=describe(folder / "typed.onnx"), precision=name, rest=rest, decisions=decisions)


def build(trt: tensorrt.TensorRT, model: TypedModel, folder: Path, emit: object = silent) -> Engine:
    return apart.build(trt, model, RANGES, NO_CUDNN, folder / "model.engine", emit=emit)  # type: ignore[arg-type]


def sqnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    error = ((reference - candidate) ** 2).sum()
    return float(10 * np.log10((reference**2).sum() / error)) if error else float("inf")


@pytest.mark.parametrize(("name", "rest", "least"), [("fp32", "fp32", 80.0), ("fp16", "fp16", 50.0)])
def test_an_engine_is_as_close_to_fp32_as_its_precision(
    trt: tensorrt.TensorRT, tmp_path: Path, name: str, rest: str, least: float
) -> None:
    engine = build(trt, typed(tmp_path, name, rest), tmp_path)
    reference = open_runner(tmp_path / "fp32.onnx").run({"x": images()})["y"]
    runner = tensorrt.open_runner(engine.path, engine.builder)
    assert sqnr(reference, runner.run({"x": images()})["y"]) >= least
    assert read_driver().gpus[0].name in runner.where
    runner.close()


@pytest.mark.parametrize("rest", ["fp16", "fp32"])
def test_an_int8_engine_computes_its_graph(trt: tensorrt.TensorRT, tmp_path: Path, rest: str) -> None:
    model = typed(tmp_path, "int8", rest)
    engine = build(trt, model, tmp_path)
    reference = open_runner(tmp_path / "fp32.onnx").run({"x": images()})["y"]
    graph = open_runner(model.onnx.path).run({"x": images()})["y"]
    runner = tensorrt.open_runner(engine.path, engine.builder)
    found = runner.run({"x": images()})["y"]
    runner.close()
    assert sqnr(reference, found) >= sqnr(reference, graph) - 1
    assert engine.audit["int8"] >= 2
    assert engine.audited.endswith("inspector") or "inspector" in engine.audited


def test_batches_of_every_size_in_the_profile_run_in_any_order(trt: tensorrt.TensorRT, tmp_path: Path) -> None:
    engine = build(trt, typed(tmp_path, "fp32", "fp32"), tmp_path)
    reference = open_runner(tmp_path / "fp32.onnx")
    runner = tensorrt.open_runner(engine.path, engine.builder)
    for n in (1, 8, 3, 1, 8, 8, 8, 2):
        x = images(n, seed=n)
        assert sqnr(reference.run({"x": x})["y"], runner.run({"x": x})["y"]) > 80
    assert runner.max_batch == 8
    runner.close()


@pytest.mark.parametrize(("name", "kept"), [("fp16", ["/s/Add", "/r/Relu"]), ("int8", ["/r/Relu"])])
def test_a_node_decided_in_fp32_stays_in_fp32_beside_fp16(
    trt: tensorrt.TensorRT, tmp_path: Path, name: str, kept: list[str]
) -> None:
    model = typed(tmp_path, name, keep_fp32="s")
    assert [d.node for d in model.decisions if d.precision == "fp32"] == kept
    # The build fails if the engine's inspector finds the node in FP16.
    engine = build(trt, model, tmp_path)
    assert engine.audit["fp32"] >= 1
    assert not [layer for layer in engine.layers if set(kept) & set(layer.nodes) and layer.precision == "fp16"]
    # What TensorRT 8.5 fuses with the node must be in FP32, too: the second build keeps it there.
    assert all("fuses it with" in decision.reason for decision in engine.raised)
    reference, graph = (
        open_runner(path).run({"x": images()})["y"] for path in (tmp_path / "fp32.onnx", model.onnx.path)
    )
    runner = tensorrt.open_runner(engine.path, engine.builder)
    assert sqnr(reference, runner.run({"x": images()})["y"]) >= sqnr(reference, graph) - 3
    runner.close()


def test_an_output_whose_shape_depends_on_values(trt: tensorrt.TensorRT, tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [2, "k"])
    graph = helper.make_graph([helper.make_node("NonZero", ["x"], ["y"], "nonzero")], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    model = TypedModel(onnx=describe(tmp_path / "m.onnx"), precision="fp32", rest="fp32", decisions=())
    engine = apart.build(trt, model, (), NO_CUDNN, tmp_path / "e", emit=silent)
    runner = tensorrt.open_runner(engine.path, engine.builder)
    for seed in range(3):
        feed = (np.random.default_rng(seed).random((4, 8)) > 0.5).astype(np.float32)
        assert np.array_equal(runner.run({"x": feed})["y"], np.stack(np.nonzero(feed)))
    runner.close()


def test_many_loads_and_runs_leave_the_memory_flat(trt: tensorrt.TensorRT, tmp_path: Path) -> None:
    from trtopt.engine.cuda.device import open_device

    engine = build(trt, typed(tmp_path, "fp16"), tmp_path)
    device = open_device(0)
    free = []
    for index in range(1000):
        runner = tensorrt.open_runner(engine.path, engine.builder, streams=1)
        runner.run({"x": images(1)})
        runner.close()
        if index % 100 == 99:
            free.append(device.free_bytes())
    device.close()
    assert free[0] - free[-1] < 8 << 20


def test_a_crash_of_the_parser_is_one_line_with_the_node(trt: tensorrt.TensorRT, tmp_path: Path) -> None:
    if trt.can.strong_typing:
        pytest.skip("later parsers do not crash on it")
    body = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 8] x) => (float[n, 8] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}> {
        s = Shape<start = 0, end = 1>(x)\n n = Squeeze(s)\n positions = Range(zero, n, one)
        f = Cast<to = 1>(positions)\n u = Unsqueeze(f, axis)\n y = Add(x, u) }"""
    proto = onnx.parser.parse_model(body)
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="crashed at Range node /positions: SIGSEGV"):
        apart.check(trt, tmp_path / "m.onnx", silent)


def test_a_build_tells_its_progress(trt: tensorrt.TensorRT, tmp_path: Path) -> None:
    events: list[object] = []
    build(trt, typed(tmp_path, "fp16"), tmp_path, events.append)
    steps = [event for event in events if isinstance(event, Progress)]
    assert len(steps) > 3
    assert all(0 <= step.done <= step.total for step in steps)


def test_warnings_of_the_builder_are_events(trt: tensorrt.TensorRT, tmp_path: Path) -> None:
    events: list[object] = []
    build(trt, typed(tmp_path, "fp16"), tmp_path, events.append)
    assert all(isinstance(event, Warned) or hasattr(event, "done") for event in events)
