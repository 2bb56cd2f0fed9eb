"""INT8 as a whole: the nodes and constants it writes, its errors, and its output SQNR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.errors import TableError, UsageError
from trtopt.precision import Request, formats, precision, precisions
from trtopt.precision.passes.eight_bits import rounding_errors
from trtopt.precision.passes.placement import place
from trtopt.types import CalibrationTable, Decision

Parse = Callable[..., ir.Model]
Write = Callable[[ir.Model], Path]
Shapes = dict[str, tuple[int, ...]]

NET = """(float[n, 16, 8, 8] x) => (float[n, 32] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w, b)\n r = Relu(c)
    d = Conv<pads = [1, 1, 1, 1]>(r, w2)\n s = Add(d, r)\n t = Relu(s)
    u = ConvTranspose(t, w3)\n j = Concat<axis = 1>(u, t)\n k = Conv(j, w4)
    g = GlobalAveragePool(k)\n f = Flatten(g)\n h = Gemm(f, v, vb)\n y = MatMul(h, m) }"""
WEIGHTS: Shapes = {"w": (16, 16, 3, 3), "b": (16,), "w2": (16, 16, 3, 3), "w3": (16, 16, 1, 1), "w4": (32, 32, 1, 1),
                   "v": (32, 32), "vb": (32,), "m": (32, 32)}  # fmt: skip


def images(seed: int, n: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 16, 8, 8)).astype(np.float32)


def minmax(model: ir.Model, folder: Path, feed: dict[str, np.ndarray]) -> CalibrationTable:
    """Return a table with absmax / 127 of every tensor that needs a scale."""
    ir.save(model, folder / "tapped.onnx")
    proto = onnx.load(folder / "tapped.onnx")
    del proto.graph.output[:]
    tensors = place(model).tensors()
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in feed)
    onnx.save(proto, folder / "tapped.onnx")
    values = feed | (open_runner(folder / "tapped.onnx").run(feed) if proto.graph.output else {})
    return CalibrationTable(method="minmax", scales={name: float(np.abs(values[name]).max()) / 127 for name in tensors})


def table(*tensors: str, scale: float = 0.05) -> CalibrationTable:
    return CalibrationTable(method="minmax", scales=dict.fromkeys(tensors, scale))


def apply(model: ir.Model, scales: CalibrationTable, rest: str = "fp16") -> dict[str, Decision]:
    decisions = precision("int8").apply(model, Request(rest=rest, table=scales))
    return {decision.node: decision for decision in decisions}


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(("rest", "opset"), [("fp32", 19), ("fp16", 19), ("bf16", 22)])
def test_the_typed_graph_passes_the_checker_with_an_sqnr_of_25_db(
    parse: Parse, write: Write, tmp_path: Path, rest: str, opset: int
) -> None:
    model = parse(NET, WEIGHTS, opset)
    ir.save(model, tmp_path / "fp32.onnx")
    decisions = apply(model, minmax(model, tmp_path, {"x": images(0)}), rest)
    assert Counter(d.precision for d in decisions.values()) == {"int8": 8, rest: 2}
    want = open_runner(tmp_path / "fp32.onnx").run({"x": images(1)})["y"]
    got = open_runner(write(model)).run({"x": images(1)})["y"]
    assert got.dtype == np.float32
    relative_error = float(((got - want) ** 2).sum() / (want**2).sum())
    assert 0 < relative_error < 10**-2.5  # more than 25 dB


def test_weights_are_stored_as_int8_and_biases_are_not_quantized(parse: Parse, write: Write, tmp_path: Path) -> None:
    model = parse(NET, WEIGHTS)
    apply(model, minmax(model, tmp_path, {"x": images(0)}))
    path = write(model)
    stored = initializers(path)
    big = {name: array.dtype for name, array in stored.items() if array.size >= 256}
    assert len(big) == 6
    assert set(big.values()) == {np.dtype(np.int8)}
    graph = onnx.load(path).graph
    computed = {name for node in graph.node for name in node.output}
    biases = [node.input[2] for node in graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
    assert len(biases) == 2
    assert {stored[name].dtype for name in biases} == {np.dtype(np.float16)}
    assert not computed & set(biases)


@pytest.mark.parametrize(
    ("body", "weights", "axis"),
    [
        ("(float[1, 16, 8, 8] x) => (float[1, 32, 8, 8] y) { y = Conv(x, w) }", {"w": (32, 16, 1, 1)}, 0),
        ("(float[1, 16, 8, 8] x) => (float[1, 32, 8, 8] y) { y = ConvTranspose(x, w) }", {"w": (16, 32, 1, 1)}, 1),
        ("(float[n, 16] x) => (float[n, 32] y) { y = Gemm(x, w) }", {"w": (16, 32)}, 1),
        ("(float[n, 16] x) => (float[n, 32] y) { y = Gemm<transB = 1>(x, w) }", {"w": (32, 16)}, 0),
        ("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)}, 1),
    ],
)
def test_a_weight_has_one_scale_per_output_channel(
    parse: Parse, write: Write, body: str, weights: Shapes, axis: int
) -> None:
    model = parse(body, weights)
    apply(model, table("x"))
    graph = onnx.load(write(model)).graph
    node = next(n for n in graph.node if n.op_type == "DequantizeLinear" and n.attribute)
    assert node.attribute[0].i == axis
    scale = initializers(write(model))[node.input[1]]
    assert scale.shape == (32,)
    assert (scale > 0).all()


def test_weights_are_quantized_from_their_fp32_values(parse: Parse, write: Write) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)})
    weight = np.full((16, 32), 127, np.float32)
    weight[1] = 62.51  # 62.5 in FP16, which is a tie and would go to 62
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    apply(model, table("x"))
    codes = next(array for array in initializers(write(model)).values() if array.shape == (16, 32))
    assert codes[1].tolist() == [63] * 32


def test_the_bias_of_a_product_with_a_transposed_activation_is_not_corrected(parse: Parse, write: Write) -> None:
    model = parse(
        "(float[24, 16] x) => (float[16, 32] y) { y = Gemm<transA = 1>(x, w, b) }", {"w": (24, 32), "b": (32,)}
    )
    request = Request(
        table=table("x"), means={("x", -1): np.ones(16)}
    )  # means of the last axis, which is not the inner one
    decisions = precision("int8").apply(model, request)
    assert [decision.reason for decision in decisions] == ["a weighted operator"]
    write(model)


def test_a_channel_of_zeros_gets_a_positive_scale_and_stays_zero(parse: Parse, write: Write) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)})
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    array = weight.numpy().copy()
    array[:, 5] = 0
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    apply(model, table("x"))
    y = open_runner(write(model)).run({"x": np.ones((2, 16), np.float32)})["y"]
    assert np.isfinite(y).all()
    assert not y[:, 5].any()
    assert y.any()


def test_a_tensor_with_several_consumers_has_one_pair(parse: Parse, write: Write) -> None:
    model = parse("(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y)"
                  "{ r = Relu(x)\n a = Conv(r, w)\n b = Conv(r, w2)\n y = Mul(a, b) }",
                  {"w": (16, 16, 1, 1), "w2": (16, 16, 1, 1)})  # fmt: skip
    apply(model, table("r"))
    nodes = onnx.load(write(model)).graph.node
    assert [node.op_type for node in nodes].count("QuantizeLinear") == 1
    inputs = [node.input[0] for node in nodes if node.op_type == "Conv"]
    assert len(set(inputs)) == 1


def test_a_weight_with_several_consumers_is_stored_once(parse: Parse, write: Write) -> None:
    model = parse("(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) { a = Conv(x, w)\n y = Conv(a, w) }",
                  {"w": (16, 16, 1, 1)})  # fmt: skip
    apply(model, table("x", "a"))
    assert [array.dtype for array in initializers(write(model)).values() if array.size == 256] == [np.dtype(np.int8)]


def test_the_inputs_and_output_of_a_concat_have_the_largest_of_their_scales(parse: Parse, write: Write) -> None:
    model = parse("(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y, float[1, 16, 8, 8] z, float[1, 16, 8, 8] o)"
                  "{ a = Relu(x)\n b = Exp(x)\n j = Concat<axis = 1>(a, b)\n y = Conv(j, v)\n z = Conv(a, w)\n"
                  "o = Conv(b, w) }", {"w": (16, 16, 1, 1), "v": (16, 32, 1, 1)})  # fmt: skip
    scales = {"a": 0.25, "b": 1.5, "j": 0.5}
    apply(model, CalibrationTable(method="minmax", scales=scales))
    path = write(model)
    stored = initializers(path)
    used = [stored[node.input[1]] for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"]
    assert [float(scale) for scale in used] == [1.5, 1.5, 1.5]


def test_scales_have_the_fallback_type_and_are_rounded_up(parse: Parse, write: Write) -> None:
    for rest, dtype in (("fp16", np.float16), ("fp32", np.float32)):
        model = parse("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)})
        apply(model, table("x", scale=0.1), rest)
        node = next(n for n in onnx.load(write(model)).graph.node if n.op_type == "QuantizeLinear")
        scale = initializers(write(model))[node.input[1]]
        assert scale.dtype == dtype
        assert np.float32(0.1) <= np.float32(scale) < 0.1001


def test_a_missing_scale_names_the_tensor(parse: Parse) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { r = Relu(x)\n y = MatMul(r, w) }", {"w": (16, 32)})
    with pytest.raises(TableError, match="no scale for r"):
        apply(model, table("x"))


def test_a_missing_table_is_an_error(parse: Parse) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)})
    with pytest.raises(TableError, match="INT8 needs a calibration table"):
        precision("int8").apply(model, Request())


def test_a_quantized_model_keeps_its_quantization(parse: Parse) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)})
    apply(model, table("x"), "fp32")
    nodes = [node.op_type for node in model.graph]
    (decision,) = precision("int8").apply(model, Request(rest="fp32"))
    assert [node.op_type for node in model.graph] == nodes
    assert (decision.precision, decision.reason) == ("int8", "quantized in the given model")


def test_an_unknown_fallback_precision_is_rejected(parse: Parse) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)})
    with pytest.raises(UsageError, match=r"unknown fallback precision 'fp8'\. Choose fp16, bf16 or fp32"):
        apply(model, table("x"), "fp8")


def test_decisions_give_the_precision_of_each_node_and_the_reason(parse: Parse) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) <float low = {-3e38}, float eps = {1e-12}> {"
                  "o = Erf(x)\n a = Add(o, low)\n e = Mul(a, eps)\n m = MatMul(e, w)\n s = Sigmoid(m)\n y = Neg(s) }",
                  {"w": (16, 32)})  # fmt: skip
    decisions = apply(model, table("e"))
    assert {name: d.precision for name, d in decisions.items()} == {
        "o": "fp16",
        "a": "fp16", "e": "fp32", "m": "int8", "s": "fp16", "y": "fp16",
    }  # fmt: skip
    assert "mask constant" in decisions["a"].reason
    assert "would become 0" in decisions["e"].reason
    assert decisions["m"].reason == "a weighted operator"
    assert decisions["s"].reason == "not faster in INT8 on TensorRT"
    assert decisions["y"].reason == "not a weighted operator"


def test_a_scale_beyond_the_range_of_fp16_is_fp32(parse: Parse, write: Write) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": (16, 32)})
    apply(model, table("x", scale=1e5))
    y = open_runner(write(model)).run({"x": np.full((1, 16), 1e7, np.float32)})["y"]
    assert np.isfinite(y).all()
    assert y.any()


@pytest.mark.parametrize("rest", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("gain", [1e8, 1e-6, 1e-8])
@pytest.mark.parametrize("where", ["activations", "weights"])
def test_what_leaves_the_range_of_fp16_is_as_exact_as_anything_else(
    parse: Parse, write: Write, tmp_path: Path, where: str, gain: float, format: str, rest: str
) -> None:
    # Relu is no island among kept nodes: what reads it is quantized, too.
    model = parse(
        "(float[n, 16] x) => (float[n, 32] y) { h = Relu(x)\n m = MatMul(h, w)\n r = Relu(m)\n y = MatMul(r, v) }",
        {"w": (16, 32), "v": (32, 32)}, 22 if rest == "bf16" else 19)  # fmt: skip
    feed = {"x": np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)}
    if where == "weights":
        weight = model.graph.initializers["w"].const_value
        assert weight is not None
        model.graph.initializers["w"].const_value = ir.tensor(weight.numpy() * np.float32(gain), name="w")
    else:
        feed["x"] *= np.float32(gain)
    ir.save(model, tmp_path / "fp32.onnx")
    want = open_runner(tmp_path / "fp32.onnx").run(feed)["y"]
    request = Request(rest=rest, table=minmax(model, tmp_path, feed))
    errors = rounding_errors(model, request, formats(8)[format])
    assert all(np.isfinite(error(feed["x"])).all() for error in errors.values())
    decisions = precision(format).apply(model, request)
    assert {d.precision for d in decisions if d.op == "MatMul"} == {format}
    got = open_runner(write(model)).run(feed)["y"]
    assert float(((got - want) ** 2).sum() / (want**2).sum()) < 10**-2.2


def test_a_tensor_is_in_fp32_also_where_only_its_scale_shows_that_it_leaves_fp16(parse: Parse, write: Write) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { h = Relu(x)\n y = MatMul(h, w) }", {"w": (16, 32)})
    # The few samples that were observed are not those that the scale is from.
    request = Request(rest="fp16", table=table("h", scale=1e5), ranges={"x": 1.0, "h": 1.0, "y": 1.0})
    precision("int8").apply(model, request)
    y = open_runner(write(model)).run({"x": np.full((1, 16), 1e7, np.float32)})["y"]
    assert np.isfinite(y).all()
    assert y.any()


def test_a_shared_scale_that_fp16_cannot_hold_is_its_largest_value_for_those_in_fp16(
    parse: Parse, write: Write
) -> None:
    model = parse(
        "(float[n, 16] x) => (float[n, 32] y, float[n, 32] z) "
        "{ h = Relu(x)\n n = Neg(x)\n j = Concat<axis = 1>(h, n)\n y = MatMul(j, v)\n z = MatMul(h, w) }",
        {"w": (16, 32), "v": (32, 32)},
    )
    scales = {"h": 0.01, "n": 1e5, "j": 1e5}
    precision("int8").apply(model, Request(rest="fp16", table=CalibrationTable(method="minmax", scales=scales)))
    found = initializers(write(model))
    assert sorted(float(found[name]) for name in found if name.endswith("/scale") and found[name].ndim == 0) == [
        65504.0,
        1e5,
    ]


def test_new_names_do_not_clash_with_those_of_the_model(parse: Parse, write: Write) -> None:
    model = parse("(float[n, 16] x) => (float[n, 32] y) { h = Relu(x)\n k = Neg(h)\n j = Abs(k)\n y = MatMul(j, w) }",
                  {"w": (16, 32)})  # fmt: skip
    for node, name in zip(model.graph, ("j/dq", "j/QuantizeLinear", "j"), strict=False):
        node.outputs[0].name = node.name = name
    apply(model, table("j"), "fp32")
    graph = onnx.load(write(model)).graph
    for names in ([node.name for node in graph.node], [name for node in graph.node for name in node.output]):
        assert len(set(names)) == len(names)


def test_the_names_on_the_command_line_are_the_precisions() -> None:
    assert precisions() == ("bf16", "fp16", "fp32", "fp8", "int8")
    assert {name for name in precisions() if precision(name).FORMAT.scaled} == {"int8", "fp8"}
    assert min(precision(name).FORMAT.opset for name in precisions()) >= 13


@pytest.mark.parametrize(("name", "fix"), [("int9", "int8"), ("INT8", "int8"), ("float", "Choose one of bf16")])
def test_an_unknown_precision_is_rejected_with_the_most_similar_name(name: str, fix: str) -> None:
    with pytest.raises(UsageError, match=fix):
        precision(name)


def test_fp32_leaves_the_graph_as_it_is(parse: Parse, write: Write) -> None:
    model = parse("(float[2, 16] x) => (float[32, 2] y) { h = MatMul(x, w)\n y = Transpose(h) }", {"w": (16, 32)})
    decisions = precision("fp32").apply(model, Request())
    assert [(d.node, d.precision, d.reason) for d in decisions] == [("h", "fp32", "requested")]
    assert [node.op_type for node in onnx.load(write(model)).graph.node] == ["MatMul", "Transpose"]
