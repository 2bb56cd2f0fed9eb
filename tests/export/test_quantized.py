"""Models that are quantized already: Q/DQ nodes are repaired for TensorRT where that is exact, the others are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import Done

from trtopt.errors import ModelError
from trtopt.graph.file import load_ir
from trtopt.graph.prepare import infer_shapes, save
from trtopt.graph.quantized import repair

Cli = Callable[..., Done]
Array = np.ndarray


def graph(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> Path:
    """Write a net with input `x` [n, 32] and output `y` [n, 16]."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 32), ("y", 16))
    ]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    net = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    onnx.save(helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def layer(
    weight_zero: Array, input_zero: Array, *, scales: Array | None = None
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Return a matrix product with Q/DQ on its input, weight codes, and a bias of INT32 codes."""
    rng = np.random.default_rng(0)
    info = np.iinfo(weight_zero.dtype)
    per_channel = scales is not None
    constants = {
        "x_scale": np.float32(0.02),
        "x_zero": input_zero,
        "codes": rng.integers(info.min + 1, info.max, (32, 16)).astype(weight_zero.dtype),
        "w_scale": scales if scales is not None else np.float32(0.003),
        "w_zero": np.broadcast_to(weight_zero, (16,)).copy() if per_channel else weight_zero,
        "bias_codes": rng.integers(-9999, 9999, 16).astype(np.int32),
        "bias_scale": np.float32(0.00006),
        "bias_zero": np.int32(0),
    }
    axis = {"axis": 1} if per_channel else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["dq"], "dequantize"),
        helper.make_node("DequantizeLinear", ["codes", "w_scale", "w_zero"], ["w"], "weight", **axis),
        helper.make_node("DequantizeLinear", ["bias_codes", "bias_scale", "bias_zero"], ["b"], "bias"),
        helper.make_node("Gemm", ["dq", "w", "b"], ["y"], "gemm"),
    ]
    return nodes, constants


def blocks(path: Path, dtype: np.dtype, zero: int) -> Path:
    """Write a matrix product whose weight has one scale for each 8 rows of a column."""
    codes = np.random.default_rng(0).integers(zero - 7, zero + 8, (32, 16))
    constants = {"codes": codes.astype(dtype), "scale": np.geomspace(0.01, 0.1, 64, dtype=np.float32).reshape(4, 16),
                 "zero": np.full((4, 16), zero).astype(dtype)}  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], "weight", axis=0, block_size=8),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    graph(path, nodes, constants)
    proto = onnx.load(path)
    proto.opset_import[0].version, proto.ir_version = 21, 10
    onnx.save(proto, path)
    return path


def outputs(path: Path, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


def repaired(path: Path) -> tuple[Path, str]:
    model = load_ir(path)
    infer_shapes(model)
    note = repair(model, path)
    save(model, path.with_name("repaired.onnx"))
    return path.with_name("repaired.onnx"), note


X = np.random.default_rng(1).normal(size=(6, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("weight_zero", "input_zero", "scales"),
    [
        (np.int8(0), np.int8(0), None),
        (np.uint8(128), np.int8(0), None),
        (np.int8(0), np.uint8(128), None),
        (np.int8(0), np.int8(0), np.linspace(0.001, 0.004, 16, dtype=np.float32)),
        (np.int8(0), np.int8(0), np.array([0.002] * 14 + [0.0, -0.002], np.float32)),
    ],
    ids=["symmetric", "uint8 weights", "uint8 input", "per channel", "dead and negative channels"],
)
def test_repairs_keep_the_results(weight_zero: Array, input_zero: Array, scales: Array | None, tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx", *layer(weight_zero, input_zero, scales=scales))
    result, note = repaired(path)
    np.testing.assert_allclose(outputs(result, X), outputs(path, X), rtol=1e-6, atol=1e-6)
    assert "1 INT32 bias made a constant" in note
    net = onnx.load(result).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in net.initializer}
    pairs = [node for node in net.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 3
    for node in pairs:
        assert (constants[node.input[1]] > 0).all()
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()


@pytest.mark.parametrize(("dtype", "zero"), [(ml_dtypes.int4, 0), (ml_dtypes.uint4, 8)])
def test_weights_of_4_bits_in_blocks_keep_the_results(dtype: type, zero: int, tmp_path: Path) -> None:
    path = blocks(tmp_path / "net.onnx", np.dtype(dtype), zero)
    result, _ = repaired(path)
    np.testing.assert_allclose(outputs(result, X), outputs(path, X), rtol=1e-6, atol=1e-6)
    assert [tensor.data_type for tensor in onnx.load(result).graph.initializer if tuple(tensor.dims) == (32, 16)] == [
        TensorProto.INT4
    ]


@pytest.mark.parametrize(("dtype", "zero"), [(ml_dtypes.uint4, 7), (np.int8, 0)])
def test_blocks_of_other_values_are_named(dtype: type, zero: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="DequantizeLinear weight has blocks of values other than int4 around 0"):
        repaired(blocks(tmp_path / "net.onnx", np.dtype(dtype), zero))


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(-128)])
def test_positive_activations_keep_their_range_with_half_of_the_levels(zero: Array, tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx", *layer(np.int8(0), zero))
    result, note = repaired(path)
    assert "255 positive levels got 127" in note
    x = np.clip(X, -3, 3) * 1.5  # what is negative must still be clipped
    error, signal = outputs(result, x) - outputs(path, x), outputs(path, x)
    assert 10 * np.log10(np.square(signal).sum() / np.square(error).sum()) > 30


@pytest.mark.parametrize(
    ("weight_zero", "input_zero", "named"),
    [(np.int8(3), np.int8(0), "weight has a zero point of 3"), (np.int8(0), np.uint8(120), "zero point of 120")],
)
def test_what_cannot_be_repaired_is_named(weight_zero: Array, input_zero: Array, named: str, tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx", *layer(weight_zero, input_zero))
    with pytest.raises(ModelError, match=named):
        repaired(path)


@pytest.mark.parametrize(
    "body",
    [
        "(uint8[n, 4] codes) => (float[n, 4] y) { y = DequantizeLinear(codes, s, z) }",
        "(float[n, 4] x) => (uint8[n, 4] codes) { codes = QuantizeLinear(x, s, z) }",
        "(float[n, 4] x) => (float[n, 4] y) { q = QuantizeLinear(x, s, z) y = Cast<to = 1>(q) }",
    ],
)
def test_uint8_codes_that_others_read_are_not_made_int8(body: str, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 19]> net {body.replace("{", "<float s = {0.5}, uint8 z = {128}> {", 1)}'
    )
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="outside of Q and DQ"):
        repaired(tmp_path / "net.onnx")


def test_the_operators_of_onnxruntime_s_own_domain_become_those_of_onnx(tmp_path: Path) -> None:
    nodes, constants = layer(np.int8(0), np.uint8(128))
    for node in nodes[:-1]:
        node.domain = "com.microsoft"
    path = graph(tmp_path / "net.onnx", nodes, constants)
    proto = onnx.load(path)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)
    result, _ = repaired(path)
    np.testing.assert_allclose(outputs(result, X), outputs(path, X), rtol=1e-6, atol=1e-6)
    assert {node.domain for node in onnx.load(result).graph.node} == {""}


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("stated", [True, False], ids=["zero point", "no zero point"])
def test_values_of_another_type_are_named(dtype: str, stated: bool, tmp_path: Path) -> None:
    zero = f", {dtype} z = {{0}}" if stated else ""
    more = ", z" if stated else ""
    kind = onnx.TensorProto.DataType.Value(dtype.upper())
    q = f"QuantizeLinear(x, s{more})" if stated else f"QuantizeLinear<output_dtype = {kind}>(x, s)"
    body = (
        f"(float[n, 4] x) => (float[n, 4] y) <float s = {{0.5}}{zero}> {{ q = {q} y = DequantizeLinear(q, s{more}) }}"
    )
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> net {body}'), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=f"QuantizeLinear q has values of type {dtype}"):
        repaired(tmp_path / "net.onnx")


@pytest.mark.parametrize("floating", [True, False], ids=["weights", "codes"])
@pytest.mark.parametrize("channels", [True, False], ids=["per channel", "per tensor"])
def test_a_weight_that_is_transposed_afterwards_is_transposed_before(
    floating: bool, channels: bool, tmp_path: Path, cli: Cli
) -> None:
    """PyTorch and ModelOpt write a linear layer so. TensorRT reads a weight in 8 bits right before the product only."""
    rng = np.random.default_rng(0)
    scale = np.linspace(0.001, 0.004, 16, dtype=np.float32) if channels else np.float32(0.002)
    codes = rng.integers(-127, 128, (16, 32)).astype(np.int8)
    constants = {
        "x_scale": np.float32(0.02), "zero": np.int8(0), "scale": scale, "zeros": np.zeros(scale.shape, np.int8),
        "w": (codes * np.reshape(scale, (-1, 1))).astype(np.float32) if floating else codes,
    }  # fmt: skip
    axis = {"axis": 0} if channels else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "zero"], ["dq"], "dequantize"),
        *([helper.make_node("QuantizeLinear", ["w", "scale", "zeros"], ["wq"], "quantize_w", **axis)] * floating),
        helper.make_node("DequantizeLinear", ["wq" if floating else "w", "scale", "zeros"], ["wd"], "weight", **axis),
        helper.make_node("Transpose", ["wd"], ["wt"], "transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["dq", "wt"], ["y"], "product"),
    ]
    path = graph(tmp_path / "net.onnx", nodes, constants)
    result, _ = repaired(path)
    np.testing.assert_allclose(outputs(result, X), outputs(path, X), rtol=1e-6, atol=1e-6)
    assert "Transpose" not in [node.op_type for node in onnx.load(result).graph.node]
    np.savez(tmp_path / "x.npz", x=np.tile(X, (6, 1)))
    done = cli("convert", path, "-p", "int8", "--data", tmp_path / "x.npz", "-o", tmp_path / "run")
    assert (done.code, "1 int8 layers" in done.out) == (0, True), done.out + done.err


@pytest.mark.parametrize(
    "moved",
    ["Transpose<perm = [0, 2, 1]>(dq)", "Reshape(dq, shape)", "Unsqueeze(dq, axis)", "Flatten<axis = 2>(dq)"],
    ids=lambda line: line.partition("(")[0].partition("<")[0],
)
def test_an_activation_may_be_moved_between_dq_and_the_product(moved: str, tmp_path: Path, cli: Cli) -> None:
    body = f"""(float[n, 32, 32] x) => (float y) <float s = {{0.02}}, int8 z = {{0}}, int64[3] shape = {{0, -1, 32}},
        int64[1] axis = {{0}}> {{
        q = QuantizeLinear(x, s, z) dq = DequantizeLinear(q, s, z) m = {moved} w = DequantizeLinear(codes, s, z)
        y = MatMul(m, w) }}"""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> net {body}')
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    codes = np.random.default_rng(0).integers(-127, 128, (32, 16)).astype(np.int8)
    proto.graph.initializer.append(numpy_helper.from_array(codes, "codes"))
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(6, 32, 32)).astype(np.float32))
    done = cli("convert", tmp_path / "net.onnx", "-p", "int8", "--data", tmp_path / "x.npz", "-o", tmp_path / "run")
    assert (done.code, "1 int8 layers" in done.out) == (0, True), done.out + done.err


def test_integer_operators_are_named(tmp_path: Path) -> None:
    nodes, constants = layer(np.int8(0), np.int8(0))
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q8", "s8", "z8"], "dynamic")
    path = graph(tmp_path / "net.onnx", [*nodes, node], constants)
    with pytest.raises(ModelError, match="DynamicQuantizeLinear dynamic"):
        repaired(path)


def test_converts_without_calibration_and_compares_with_the_baseline(cli: Cli, tmp_path: Path) -> None:
    nodes, constants = layer(np.int8(0), np.uint8(128))
    path = graph(tmp_path / "net.onnx", nodes, constants)
    floats = {
        "w": constants["codes"] * constants["w_scale"],
        "b": (constants["bias_codes"] * constants["bias_scale"]).astype(np.float32),
    }
    baseline = graph(tmp_path / "fp32.onnx", [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm")], floats)
    np.savez(tmp_path / "x.npz", x=np.tile(X, (6, 1)))
    convert = ("convert", path, "-p", "int8", "--data", tmp_path / "x.npz", "--backend=onnxruntime")
    done = cli(*convert, "--baseline", baseline, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert "1 node in int8" in done.out
    assert "add --baseline" not in done.err
    assert "add --baseline" in cli(*convert, "-o", tmp_path / "other").err


def test_an_int8_model_stays_int8_in_a_run_for_fp8(tmp_path: Path, cli: Cli) -> None:
    path = graph(tmp_path / "net.onnx", *layer(np.int8(0), np.int8(0)))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(2).normal(size=(40, 32)).astype(np.float32))
    done = cli("convert", path, "-p", "fp8", "--data", tmp_path / "x.npz", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert "nothing was converted to fp8" in done.out
    assert "1 node in int8" in done.out


def test_what_the_given_model_computes_in_floating_point_is_said_so(cli: Cli, tmp_path: Path) -> None:
    codes = {
        "codes": np.ones((32, 16), np.int8),
        "s": np.full(16, 0.01, np.float32),
        "w": np.ones((16, 16), np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s"], ["weight"], "dq", axis=1),
        helper.make_node("MatMul", ["x", "weight"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], "second"),
    ]
    path = graph(tmp_path / "net.onnx", nodes, codes)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(2).normal(size=(40, 32)).astype(np.float32))
    done = cli(
        "convert", path, "-p", "int8", "--data", tmp_path / "x.npz", "-o", tmp_path / "run", "--backend=onnxruntime"
    )
    assert "nothing was converted to int8" in done.out
    decisions = json.loads((tmp_path / "run" / "report.json").read_text())["typed"]["decisions"]
    assert {each["node"]: each["reason"] for each in decisions} == {
        "first": "only one of its operands is quantized in the given model",
        "second": "not quantized in the given model",
    }
