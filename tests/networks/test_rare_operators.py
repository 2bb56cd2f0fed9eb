"""Operators that exporters rarely write, converted from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks.small import Cli, convert, feeds, network, sqnr

from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt import builder as tensorrt
from trtopt.graph.prepare import infer_shapes, save
from trtopt.precision import Request, precision

X = np.random.default_rng(0).normal(size=(8, 2, 4, 4)).astype(np.float32)


def write(folder: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_a_network_without_the_default_operators(dtype: str, precision: str, tmp_path: Path, cli: Cli) -> None:
    write(
        tmp_path,
        f'<ir_version: 8, opset_import: ["ai.onnx.ml": 1]> net ({dtype}[n, 2] x) => (float[n, 2] y) '
        "{ y = ai.onnx.ml.Scaler<offset = [1.0, 2.0], scale = [2.0, 3.0]>(x) }",
    )
    x = X.reshape(-1, 2).astype(np.float64 if dtype == "double" else np.float32)
    assert convert(cli, tmp_path, precision, {"x": x}).code == 0
    assert sqnr(tmp_path, feeds({"x": x})) > 60


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_constants_that_are_attributes_keep_their_type(precision: str, tmp_path: Path, cli: Cli) -> None:
    write(
        tmp_path,
        """<ir_version: 10, opset_import: ["": 19, "ai.onnx.ml": 5]> net (float[n, 2] x) => (float[n, 2] y) {
          e = Exp(x)
          y = ai.onnx.ml.TreeEnsemble<
            aggregate_function = 1, n_targets = 2, post_transform = 0, tree_roots = [0], leaf_targetids = [0, 1, 0, 1],
            leaf_weights = float[4] {5.2, 12.1, -12.2, 7.2}, nodes_splits = float[3] {1.14, 0.52, 2.2},
            nodes_modes = uint8[3] {0, 0, 0}, nodes_featureids = [0, 0, 0], nodes_trueleafs = [0, 1, 1],
            nodes_truenodeids = [1, 0, 1], nodes_falseleafs = [0, 1, 1], nodes_falsenodeids = [2, 2, 3]>(e)
        }""",
    )
    done = convert(cli, tmp_path, precision, {"x": X.reshape(-1, 2)})
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("op", ["Celu", "HardSwish", "LpNormalization", "LpPool<kernel_shape = [1, 1]>", "Mish"])
def test_the_parser_takes_what_it_refuses_in_16_bits(op: str, name: str, tmp_path: Path) -> None:
    body = f"(float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y) {{ a = Relu(x) y = {op}(a) }}"
    model = ir.from_proto(onnx.load(network(tmp_path, body, {}, 22)))
    infer_shapes(model)
    precision(name).apply(model, Request())
    save(model, tmp_path / "typed.onnx")
    assert tensorrt.check(tensorrt.find(None), tmp_path / "typed.onnx") == ()


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_cache_that_is_updated_in_place_stays_an_input(name: str, tmp_path: Path, cli: Cli) -> None:
    """TensorRT refuses a cast between the input and TensorScatter."""
    body = """(float[2, 4, 8, 16] past, float[2, 4, 1, 16] x, int64[2] at) => (
        float[2, 4, 8, 16] present, float[2, 4, 1, 8] y) {
        k = MatMul(x, w) present = TensorScatter<axis=2, mode="linear">(past, k, at)
        t = Transpose<perm=[0, 1, 3, 2]>(present) y = MatMul(x, t) }"""
    rng = np.random.default_rng(0)
    network(tmp_path, body, {"w": rng.normal(0, 0.3, (16, 16)).astype(np.float32)}, 24)
    samples = tmp_path / "samples"
    samples.mkdir()
    for i in range(4):
        past, x = (rng.normal(size=(2, 4, n, 16)).astype(np.float32) for n in (8, 1))
        np.savez(samples / f"{i}.npz", past=past, x=x, at=np.full(2, i))
    done = convert(cli, tmp_path, name, samples, "--backend", "tensorrt")
    assert done.code == 0, done.err


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_transposed_convolution_builds_beside_bf16(precision: str, tmp_path: Path, cli: Cli) -> None:
    body = """(float[n, 2, 4, 4] x) => (float[n, 16, 16, 16] y) {
        a = ConvTranspose<strides=[2, 2]>(x, w) r = Relu(a) y = ConvTranspose<strides=[2, 2]>(r, v) }"""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 0.4, (2, 16, 2, 2)), "v": rng.normal(0, 0.2, (16, 16, 2, 2))}
    network(tmp_path, body, {name: array.astype(np.float32) for name, array in weights.items()})
    rest = ("--rest", "bf16") if precision == "int8" else ()
    done = convert(cli, tmp_path, precision, {"x": X}, "--backend", "tensorrt", *rest)
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": X})) > 25
    assert "TensorRT for RTX 1.7 does not support ConvTranspose in BF16" in done.out


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_attribute_that_is_left_out_has_its_default(precision: str, tmp_path: Path, cli: Cli) -> None:
    """ONNX's shape inference fails on this operator without its axes."""
    network(tmp_path, "(float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y) { y = MeanVarianceNormalization(x) }", {})
    done = convert(cli, tmp_path, precision, {"x": X})
    assert done.code == 0, done.err
    assert sqnr(tmp_path, [{"x": X}]) > 50


def test_the_bits_of_a_value_are_those_of_float32(tmp_path: Path, cli: Cli) -> None:
    write(
        tmp_path,
        '<ir_version: 13, opset_import: ["": 26]> net (float[n, 2] x) => (float[n, 2] y, int32[n, 2] bits) '
        "{ y = Exp(x) bits = BitCast<to = 6>(x) }",
    )
    x = X.reshape(-1, 2)
    done = convert(cli, tmp_path, "fp16", {"x": x})
    assert done.code == 0, done.err
    assert np.array_equal(open_runner(tmp_path / "run/typed.onnx").run({"x": x})["bits"], x.view(np.int32))


def test_the_bits_of_a_double_cannot_be_those_of_float32(tmp_path: Path, cli: Cli) -> None:
    write(
        tmp_path,
        '<ir_version: 13, opset_import: ["": 26]> net (double[n, 2] x) => (int64[n, 2] y) { y = BitCast<to = 7>(x) }',
    )
    done = convert(cli, tmp_path, "fp32", {"x": X.reshape(-1, 2).astype(np.float64)})
    assert done.code == 2
    assert "BitCast" in done.err
    assert "float64" in done.err


@pytest.mark.parametrize("dtype", ["float8e4m3fn", "float8e5m2", "int4", "uint4", "float4e2m1"])
def test_an_input_of_a_type_without_samples_is_refused(dtype: str, tmp_path: Path, cli: Cli) -> None:
    write(
        tmp_path,
        f'<ir_version: 11, opset_import: ["": 23]> net ({dtype}[n, 2] codes) => (float[n, 2] y) '
        "{ y = Cast<to = 1>(codes) }",
    )
    done = convert(cli, tmp_path, "fp32", {"codes": np.zeros((8, 2), np.float32)})
    assert done.code == 2
    assert f"the model takes {dtype}, a type that NumPy files do not have" in done.err


def test_quantized_nodes_without_names_are_named_after_their_results(tmp_path: Path, cli: Cli) -> None:
    network(
        tmp_path,
        "(float[n, 2] x) => (uint8[n, 2] q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }",
        {},
    )
    done = convert(cli, tmp_path, "fp32", {"x": X.reshape(-1, 2)})
    assert done.code == 2
    assert "DynamicQuantizeLinear q." in done.err


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_result_of_an_operator_that_onnx_does_not_know_has_a_type(
    precision: str, backend: str, tmp_path: Path, cli: Cli
) -> None:
    """TensorRT's parser takes com.microsoft's Gelu; ONNX's shape inference does not know it."""
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> net (float[n, 32] x) => (float[n, 24] y) '
        "{ a = MatMul(x, w) g = com.microsoft.Gelu(a) r = Relu(g) y = MatMul(r, v) }"
    )
    for name, shape in (("w", (32, 48)), ("v", (48, 24))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    onnx.save(proto, tmp_path / "model.onnx")
    x = random.normal(size=(40, 32)).astype(np.float32)
    done = convert(cli, tmp_path, precision, {"x": x}, "--backend", backend)
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > (20 if precision == "int8" else 45)
    quantized = [node for node in onnx.load(tmp_path / "run/typed.onnx").graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == (2 if precision == "int8" else 0)


@pytest.mark.parametrize("attribute", [False, True])
def test_a_sparse_weight_is_refused(attribute: bool, tmp_path: Path, cli: Cli) -> None:
    path = network(tmp_path, "(float[n, 4] x) => (float[n, 2] y) { y = MatMul(x, w) }", {})
    proto = onnx.load(path)
    values = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    sparse = onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array([0, 3])), [4, 2])
    if attribute:
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    else:
        proto.graph.sparse_initializer.append(sparse)
    onnx.save(proto, path)
    for command in (("inspect", path), ("convert", path, "-p", "fp16", "--no-compare", "-o", tmp_path / "run")):
        done = cli(*command)
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith(f"error: {path} stores w as a sparse tensor: TensorRT's parser ")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("onesided", ["", "<onesided = 0>"])
def test_a_spectrum_is_one_sided_unless_the_network_says_otherwise(
    onesided: str, precision: str, tmp_path: Path, cli: Cli
) -> None:
    random = np.random.default_rng(0)
    bins = 64 if onesided else 33
    body = f"""(float[n, 256, 1] x) => (float[n, 24] y, float[n, 7, {bins}, 2] s) {{
        s = STFT{onesided}(x, hop, window) p = Mul(s, s) e = ReduceSum<keepdims = 0>(p, last)
        f = Flatten(e) y = Gemm(f, w) }}"""
    weights = {"hop": np.array(32), "window": np.hanning(64).astype(np.float32), "last": np.array([3]),
               "w": random.normal(size=(7 * bins, 24)).astype(np.float32)}  # fmt: skip
    network(tmp_path, body, weights)
    x = random.normal(size=(40, 256, 1)).astype(np.float32)
    done = convert(cli, tmp_path, precision, {"x": x})
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > (20 if precision == "int8" else 45)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_nodes_of_a_body_are_reported(precision: str, tmp_path: Path, cli: Cli) -> None:
    random = np.random.default_rng(0)
    network(
        tmp_path,
        """(float[n, 32] x, bool c) => (float[n, 32] y) {
            a = MatMul(x, w)
            b = If(c) <
                then_branch = one () => (float[n, 32] p) { p = MatMul(a, w) },
                else_branch = two () => (float[n, 32] q) { r = Relu(a) q = Add(r, x) }>
            y = MatMul(b, w) }""",
        {"w": random.normal(size=(32, 32)).astype(np.float32)},
    )
    (tmp_path / "data").mkdir()
    for index in range(32):
        x = random.normal(size=(1, 32)).astype(np.float32)
        np.savez(tmp_path / f"data/{index:02}.npz", x=x, c=np.array(index % 2 == 0))
    done = convert(cli, tmp_path, precision, tmp_path / "data", "--backend", "tensorrt")
    assert done.code == 0, done.err
    decisions = json.loads((tmp_path / "run/report.json").read_text())["typed"]["decisions"]
    inside = [entry["op"] for entry in decisions if entry["reason"].startswith("in the body of an If")]
    assert sorted(inside) == ["Add", "MatMul", "Relu"]
    assert "in the body of an If" in cli("inspect", tmp_path / "model.onnx").out
