"""Typed graphs in onnxruntime's default options: the result of the optimizer off, and TensorRT's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.portable import for_onnxruntime, for_tensorrt, write_for_tensorrt
from trtopt.graph.prepare import infer_shapes
from trtopt.precision import Request, precision
from trtopt.types import CalibrationTable

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]

IMAGES = "(float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y)"
CONV = f"""{IMAGES} <float low = {{0}}, float high = {{2}}> {{ c = Conv<pads = [1, 1, 1, 1]>(x, w, b)\n a = Relu(c)
    y = Conv<pads = [1, 1, 1, 1]>(a, w2, b) }}"""
CLIP = CONV.replace("Relu(c)", "Clip(c, low, high)")
DEPTHWISE = CLIP.replace("Conv<pads = [1, 1, 1, 1]>(x", "Conv<group = 16, pads = [1, 1, 1, 1]>(x")
DIRECT = CONV.replace("a = Relu(c)", "").replace("(a,", "(c,")
POOL = CONV.replace("a = Relu(c)", "d = Relu(c)\n a = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(d)")
GEMM = "(float[n, 32] x) => (float[n, 32] y) { c = Gemm<transB = 1>(x, w, b)\n a = Relu(c)\n y = Gemm(a, w, b) }"
MATMUL = "(float[n, 32] x) => (float[n, 32] y) { m = MatMul(x, w)\n c = Add(m, b)\n a = Relu(c)\n y = MatMul(a, w) }"
TRANSPOSED = f"{IMAGES} {{ c = ConvTranspose<pads = [1, 1, 1, 1]>(x, w2, b)\n a = Relu(c)\n y = Conv(a, w1, b) }}"
FILTER, DENSE = (16, 16, 3, 3), {"w": (32, 32), "b": (32,)}
NETWORKS: Mapping[str, tuple[str, Mapping[str, tuple[int, ...]]]] = {
    "conv": (CONV, {"w": FILTER, "w2": FILTER, "b": (16,)}),
    "clip": (CLIP, {"w": FILTER, "w2": FILTER, "b": (16,)}),
    "depthwise": (DEPTHWISE, {"w": (16, 1, 3, 3), "w2": FILTER, "b": (16,)}),
    "direct": (DIRECT, {"w": FILTER, "w2": FILTER, "b": (16,)}),
    "pool": (POOL, {"w": FILTER, "w2": FILTER, "b": (16,)}),
    "gemm": (GEMM, DENSE),
    "matmul": (MATMUL, DENSE),
    "transposed": (TRANSPOSED, {"w2": FILTER, "w1": (16, 16, 1, 1), "b": (16,)}),
}
TYPES = [("int8", "fp16"), ("int8", "fp32"), ("fp8", "fp16"), ("fp8", "fp32"), ("fp16", "fp16")]


def typed(parse: Parse, network: str, name: str, rest: str) -> ir.Model:
    """Return a typed graph in its portable form, with small scales, whose products FP16 does not represent."""
    body, weights = NETWORKS[network]
    model = parse(body, weights, opset=19)
    for value in model.graph.initializers.values():
        if value.name.startswith("w"):
            value.const_value = ir.tensor(value.const_value.numpy() / 100, name=value.name)
    table = CalibrationTable(method="minmax", scales={"x": 0.03, "c": 0.004, "a": 0.004, "d": 0.004})
    precision(name).apply(model, Request(rest=rest, table=table))
    for_onnxruntime(model)
    return model


def loaded(path: Path, level: ort.GraphOptimizationLevel, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    return ort.InferenceSession(path, options).run(None, dict(feed))[0]


def samples(network: str) -> dict[str, np.ndarray]:
    shape = (4, 32) if network in ("gemm", "matmul") else (4, 16, 8, 8)
    return {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


def sqnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    error = ((reference.astype(np.float64) - candidate) ** 2).sum()
    return 10 * np.log10((reference.astype(np.float64) ** 2).sum() / error) if error else np.inf


@pytest.mark.parametrize(("name", "rest"), TYPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_onnxruntime_computes_the_same_with_its_optimizer_as_without(
    parse: Parse, write: Write, network: str, name: str, rest: str
) -> None:
    if (network, name, rest) == ("matmul", "fp8", "fp32") and ort.__version__.startswith(("1.22", "1.23")):
        pytest.skip("this onnxruntime makes an integer product of it, and does not load that")
    path, feed = write(typed(parse, network, name, rest)), samples(network)
    plain = loaded(path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL, feed)
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        assert sqnr(plain, loaded(path, level, feed)) > 45
    assert sqnr(open_runner(path).run(feed)["y"], plain) > 45  # and the same as in the simulation that is reported


@pytest.mark.parametrize(("name", "rest"), [*TYPES, ("int8", "bf16"), ("fp8", "bf16")])
def test_tensorrt_reads_the_graph_without_what_is_there_for_onnxruntime(parse: Parse, name: str, rest: str) -> None:
    model = typed(parse, "conv", name, rest)
    for_tensorrt(model)
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            source = node.inputs[0].producer()
            assert source is None or source.op_type == "Relu" or source.inputs[0].name == "x"
            reader = node.outputs[0].uses()[0].node
            assert reader.inputs[1] is node.inputs[1]  # one scale for both, as it was
    assert "Max" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize(("name", "rest"), TYPES)
def test_both_forms_compute_the_same(parse: Parse, write: Write, tmp_path: Path, name: str, rest: str) -> None:
    path, feed = write(typed(parse, "conv", name, rest)), samples("conv")
    other = write_for_tensorrt(path, tmp_path / "..", 24)
    np.testing.assert_array_equal(*(open_runner(each).run(feed)["y"] for each in (path, other)))


def test_a_cast_and_a_max_of_the_model_itself_stay_for_tensorrt(parse: Parse) -> None:
    body = f"{IMAGES} <float s = {{0.1}}, int8 z = {{0}}> {{ m = Max(x, x)\n q = QuantizeLinear(m, s, z)\n "
    model = parse(body + "y = DequantizeLinear(q, s, z) }")
    infer_shapes(model)
    assert not for_tensorrt(model)


@pytest.mark.parametrize(("before", "count"), [
    ("c = Cast<to=1>(x) s = Transpose<perm=[1, 0, 2]>(c)", 1),
    ("c = Cast<to=1>(x) s = Concat<axis=0>(z, c)", 1),
    ("c = Cast<to=1>(x) s = Relu(c)", 0),
])  # fmt: skip
def test_tensorrt_s_form_separates_a_recurrent_operator_from_a_cast(before: str, count: int, parse: Parse) -> None:
    recurrent = "y = RNN<hidden_size=4>(s, w, r)"
    body = f"(float16[1, 1, 4] x, float[1, 1, 4] z) => (float[n, 1, 1, 4] y) {{ {before} {recurrent} }}"
    model = parse(body, {"w": (1, 4, 4), "r": (1, 4, 4)}, opset=19)
    infer_shapes(model)
    assert for_tensorrt(model) == (count == 1)
    inserted = [node for node in model.graph if node.op_type == "Max"]
    assert len(inserted) == count
    assert all(node.inputs[0] is node.inputs[1] for node in inserted)
