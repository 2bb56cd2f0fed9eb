"""Inputs and outputs of every form: unread, constant, passed through, empty, or not numbers at all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks.small import Cli, convert, feeds, network, sqnr

RNG = np.random.default_rng(0)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


EMBEDDING = """(int64[n, l] ids, int64[n, m] types) => (float[n, 32] y) {
    x = Gather(e, ids) a0 = MatMul(x, w) a = Add(a0, b) y = ReduceMean<axes=[1], keepdims=0>(a)
    unused = Cast<to=1>(types) }"""
TOKENS = {"ids": RNG.integers(0, 100, (48, 16)), "types": np.zeros((48, 16), np.int64)}
IDS = ("--shape", "ids=1x16:8x16:32x16")
TYPES = ("--shape", "types=1x16:8x16:32x16")


def embedding(folder: Path) -> None:
    network(folder, EMBEDDING, {"e": normal(100, 32), "w": normal(32, 32), "b": normal(32)})


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("shapes", [IDS, IDS + TYPES])
@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_an_input_that_nothing_reads_needs_no_shape(
    precision: str, shapes: tuple[str, ...], backend: str, tmp_path: Path, cli: Cli
) -> None:
    embedding(tmp_path)
    done = convert(cli, tmp_path, precision, TOKENS, *shapes, "--backend", backend)
    assert done.code == 0, done.err
    assert "dropped inputs that no output depends on: types" in done.err
    assert sqnr(tmp_path, feeds(TOKENS)) > 22
    again = cli("compare", tmp_path / "model.onnx", tmp_path / "run", "--data", tmp_path / "data.npz",
                "-o", tmp_path / "c", "--allow-inconclusive")  # fmt: skip
    assert again.code == 0, again.err


def test_an_input_that_only_gives_its_size_is_dropped_when_the_size_is_fixed(tmp_path: Path, cli: Cli) -> None:
    body = """(float[n, 32] x, float[n, l] mask) => (float[n, k] y) {
        s = Shape<start=1, end=2>(mask) f = ConstantOfShape(s) r = ReduceSum<keepdims=0>(f)
        z = MatMul(x, w) y = Add(z, r) }"""
    network(tmp_path, body, {"w": normal(32, 24)})
    samples = {"x": normal(40, 32), "mask": normal(40, 16)}
    done = convert(cli, tmp_path, "fp16", samples, "--shape", "mask=1x16:8x16:32x16", "--backend", "tensorrt")
    assert done.code == 0, done.err
    again = cli(
        "compare", tmp_path / "model.onnx", tmp_path / "run", "--data", tmp_path / "data.npz", "-o", tmp_path / "c"
    )
    assert again.code in (0, 4), again.err


OUTPUTS = {
    "a constant": ("float[20, 4] k", "k = Constant<value = float[20, 4] {" + ", ".join(["1.5"] * 80) + "}>()"),
    "a weight": ("float[16, 16, 3, 3] w", ""),
    "an input": ("float[n, 16, 8, 8] k", "k = Identity(x)"),
    "an input, moved": ("float[n, 8, 8, 16] k", "k = Transpose<perm=[0, 2, 3, 1]>(x)"),
    "another output": ("float[n, 16, 8, 8] k", "k = Identity(y)"),
    "a tensor that is read as well": ("float[n, 16, 8, 8] f", ""),
    "integers": ("int64[4] k", "k = Shape(x)"),
}


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
@pytest.mark.parametrize(("declared", "line"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_may_be(declared: str, line: str, precision: str, tmp_path: Path, cli: Cli) -> None:
    body = f"(float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y, {declared}) {{ "
    body += f"f = Conv<pads=[1, 1, 1, 1]>(x, w, b) a = Relu(f) y = Conv<pads=[1, 1, 1, 1]>(a, v) {line} }}"
    network(
        tmp_path, body, {"w": normal(16, 16, 3, 3, scale=0.1), "b": normal(16), "v": normal(16, 16, 3, 3, scale=0.1)}
    )
    x = normal(40, 16, 8, 8)
    done = convert(cli, tmp_path, precision, {"x": x}, "--backend", "tensorrt")
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > (25 if precision == "int8" else 40)
    source, typed = (onnx.load(tmp_path / name).graph.output for name in ("model.onnx", "run/typed.onnx"))
    assert [(v.name, v.type.tensor_type.elem_type) for v in typed] == [
        (v.name, v.type.tensor_type.elem_type) for v in source
    ]


@pytest.mark.parametrize("lacking", ["shape", "type"])
@pytest.mark.parametrize("external", [False, True])
def test_an_output_may_lack_its(lacking: str, external: bool, tmp_path: Path, cli: Cli) -> None:
    body = "(float[n, 4, 32] x) => (float[n, 4, 32] y, float[n, 4, 64] h) { h = MatMul(x, w) y = MatMul(h, v) }"
    model = onnx.load(network(tmp_path, body, {"w": normal(32, 64, scale=0.2), "v": normal(64, 32, scale=0.2)}))
    for output in model.graph.output:
        (output.type.tensor_type if lacking == "shape" else output).ClearField(lacking)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=external, location="weights", size_threshold=0)
    x = normal(40, 4, 32)
    done = convert(cli, tmp_path, "int8", {"x": x}, "--backend", "tensorrt")
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > 25
    done = cli("inspect", tmp_path / "model.onnx")
    assert "h  float32 [n, 4, 64]" in done.out


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_default_domain_may_be_called_by_its_alias(precision: str, tmp_path: Path, cli: Cli) -> None:
    body = "(float[n, 4, 32] x) => (float[n, 4, 32] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    model = onnx.load(network(tmp_path, body, {"w": normal(32, 64, scale=0.2), "v": normal(64, 32, scale=0.2)}))
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    onnx.save(model, tmp_path / "model.onnx")
    x = normal(40, 4, 32)
    done = convert(cli, tmp_path, precision, {"x": x}, "--backend", "tensorrt")
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > (25 if precision == "int8" else 45)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_nodes_may_be_in_any_order_and_a_graph_without_a_name(
    precision: str, external: bool, tmp_path: Path, cli: Cli
) -> None:
    body = "(float[n, 4, 32] x) => (float[n, 4, 32] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    model = onnx.load(network(tmp_path, body, {"w": normal(32, 64, scale=0.2), "v": normal(64, 32, scale=0.2)}))
    model.graph.name = ""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=external, location="weights", size_threshold=0)
    x = normal(40, 4, 32)
    done = convert(cli, tmp_path, precision, {"x": x}, "--backend", "tensorrt")
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > (25 if precision == "int8" else 45)


NO_NUMBERS = {
    "a string tensor": "(float[4, 32] x, string[4] s) => (float[4, 20] y, string[4] t) "
    '{ t = StringNormalizer<case_change_action="LOWER">(s) y = MatMul(x, w) }',
    "a sequence": "(float[4, 32] x, seq(float[4]) s) => (float[4, 20] y, float[4] t) "
    "{ i = Constant<value = int64 {0}>() t = SequenceAt(s, i) y = MatMul(x, w) }",
    "an optional": "(float[4, 32] x, optional(float[4]) s) => (float[4, 20] y, float[4] t) "
    "{ t = OptionalGetElement(s) y = MatMul(x, w) }",
}


@pytest.mark.parametrize(("kind", "body"), NO_NUMBERS.items(), ids=NO_NUMBERS)
def test_what_is_not_a_tensor_of_numbers_is_refused_in_one_line(kind: str, body: str, tmp_path: Path, cli: Cli) -> None:
    network(tmp_path, body, {"w": normal(32, 20)})
    done = convert(cli, tmp_path, "fp16", {"x": normal(8, 4, 32)})
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"error: s of {tmp_path / 'model.onnx'} is {kind}: ")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_sequences_inside_are_split_or_stay_in_fp32(precision: str, tmp_path: Path, cli: Cli) -> None:
    body = """(float[n, 32] x, int64 which) => (float[n, 32] y) {
        a = Gemm(x, w0, b0) s = SplitToSequence<axis=1>(a, size) p = SequenceAt(s, which)
        q = Relu(p) y = Gemm(q, w1) }"""
    weights = {"w0": normal(32, 64, scale=0.2), "b0": normal(64), "w1": normal(32, 32, scale=0.2), "size": np.int64(32)}
    network(tmp_path, body, weights)
    samples = {"x": normal(40, 32), "which": np.zeros(40, np.int64)}
    done = convert(cli, tmp_path, precision, samples)
    assert done.code == 0, done.err
    assert sqnr(tmp_path, [{"x": samples["x"][i : i + 1], "which": np.array(0)} for i in range(8)]) > 20


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_past_may_be_empty(precision: str, tmp_path: Path, cli: Cli) -> None:
    body = """(float[1, 1, 64] x, float[1, 4, p, 16] past) => (float[1, 4, 1, 16] y, float[1, 4, t, 16] present) {
        k0 = MatMul(x, wk) k1 = Reshape(k0, s) k2 = Transpose<perm=[0, 2, 1, 3]>(k1) present = Concat<axis=2>(past, k2)
        q0 = MatMul(x, wq) q1 = Reshape(q0, s) q = Transpose<perm=[0, 2, 1, 3]>(q1)
        kt = Transpose<perm=[0, 1, 3, 2]>(present) sc = MatMul(q, kt)
        p = Softmax<axis=-1>(sc) y = MatMul(p, present) }"""
    network(
        tmp_path, body, {"wk": normal(64, 64, scale=0.1), "wq": normal(64, 64, scale=0.1), "s": np.array([0, 0, 4, 16])}
    )
    (tmp_path / "data").mkdir()
    samples = [{"x": normal(1, 1, 64), "past": normal(1, 4, i % 7, 16)} for i in range(40)]
    for i, sample in enumerate(samples):
        np.savez(tmp_path / f"data/{i:02}.npz", **sample)
    shape = ("--shape", "past=1x4x0x16:1x4x4x16:1x4x8x16")
    done = convert(cli, tmp_path, precision, tmp_path / "data", *shape, "--backend", "tensorrt")
    assert done.code == 0, done.err
    assert sqnr(tmp_path, samples[:8]) > 25
    refused = convert(cli, tmp_path, precision, tmp_path / "data", "--shape", "past=1x4x1x16:1x4x4x16:1x4x8x16")
    assert refused.code == 2
    assert "a sample has the shape 1x4x0x16 for past: the engine's profile covers 1x4x1x16 to 1x4x8x16" in refused.err


def test_the_proposed_shape_of_an_empty_past_is_valid(tmp_path: Path, cli: Cli) -> None:
    body = "(float[1, p, 32] past) => (float[1, p, 24] y) { y = MatMul(past, w) }"
    network(tmp_path, body, {"w": normal(32, 24)})
    (tmp_path / "data").mkdir()
    for i in range(5):
        np.savez(tmp_path / f"data/{i}.npz", past=normal(1, max(i - 2, 0), 32))
    done = convert(cli, tmp_path, "fp16", tmp_path / "data")
    assert done.code == 2
    flag = re.search(r"--shape (past=\S+)", done.err)
    assert flag
    assert flag[1] == "past=1x0x32:1x1x32:1x2x32"
    assert convert(cli, tmp_path, "fp16", tmp_path / "data", "--shape", flag[1]).code == 0


def test_only_the_smallest_size_may_be_0(tmp_path: Path, cli: Cli) -> None:
    embedding(tmp_path)
    done = convert(cli, tmp_path, "fp16", TOKENS, "--shape", "ids=1x0:8x0:32x16")
    assert done.code == 2
    assert "--shape ids=1x0:8x0:32x16 has a size of 0: only the smallest size of a dimension may be 0" in done.err


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_two_nodes_may_have_one_name(precision: str, external: bool, tmp_path: Path, cli: Cli) -> None:
    path = network(tmp_path, "(float[n, 32] x) => (float[n, 20] y) { a = Gemm(x, w) r = Relu(a) y = Gemm(r, v) }",
                   {"w": normal(32, 64, scale=0.2), "v": normal(64, 20)})  # fmt: skip
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.name = "fc"
    onnx.save(proto, path, save_as_external_data=external, location="weights", size_threshold=0)
    done = convert(cli, tmp_path, precision, {"x": normal(64, 32)})
    assert done.code == 0, done.err
    names = [node.name for node in onnx.load(tmp_path / "run/typed.onnx").graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_number_of_boxes_may_differ(precision: str, tmp_path: Path, cli: Cli) -> None:
    body = """(float[1, 16, 8, 8] x) => (int64[k, 3] sel, float[1, 64, 4] boxes, float[1, 3, 64] scores) {
        a0 = Conv<pads=[1, 1, 1, 1]>(x, w, b) a = Relu(a0) c = Conv(a, wb) d = Reshape(c, sb)
        e = Transpose<perm=[0, 2, 1]>(d) f = Sigmoid(e) boxes = Mul(f, size) g = Conv(a, ws) h = Reshape(g, ss)
        scores = Sigmoid(h) sel = NonMaxSuppression<center_point_box=1>(boxes, scores, most, iou, least) }"""
    weights = {
        "w": normal(32, 16, 3, 3, scale=0.1), "b": normal(32), "wb": normal(4, 32, 1, 1, scale=0.3),
        "ws": normal(3, 32, 1, 1, scale=0.3), "sb": np.array([1, 4, -1]), "ss": np.array([1, 3, -1]),
        "size": np.float32(64), "most": np.array([20]), "iou": np.array([0.5], np.float32),
        "least": np.array([0.6], np.float32),
    }  # fmt: skip
    network(tmp_path, body, weights)
    done = convert(cli, tmp_path, precision, {"x": normal(48, 16, 8, 8)})
    assert done.code in (0, 1), done.err
    assert "another shape" not in done.err + done.out


def test_a_tensor_that_is_input_and_output_is_refused_with_a_way_out(tmp_path: Path, cli: Cli) -> None:
    network(
        tmp_path, "(float[n, 32] x) => (float[n, 24] y, float[n, 32] x) { y = MatMul(x, w) }", {"w": normal(32, 24)}
    )
    done = convert(cli, tmp_path, "fp16", {"x": normal(8, 32)}, "--backend", "tensorrt")
    assert done.code == 2
    assert "x is an input and an output: the tensors of an engine have one role each. Export" in done.err


def test_a_network_without_a_computation_is_refused(tmp_path: Path, cli: Cli) -> None:
    network(tmp_path, "(float[n, 32] x) => (float[32, 24] y) { y = Identity(w) }", {"w": normal(32, 24)})
    done = convert(cli, tmp_path, "fp16", {"x": normal(8, 32)})
    assert done.code == 2
    assert "computes nothing: all of its outputs are constants or inputs" in done.err
