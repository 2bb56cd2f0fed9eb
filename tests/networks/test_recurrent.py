"""Recurrent networks are typed in a form that TensorRT's parser takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks.small import Cli, convert, network, sqnr

from trtopt.engine.trt import builder as tensorrt
from trtopt.graph.prepare import infer_shapes, save
from trtopt.precision import Request, precision

RNG = np.random.default_rng(0)
TIME, FEATURES, HIDDEN = 8, 40, 16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def normal(*shape: int, scale: float = 0.2) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def weights(op: str, directions: int) -> dict[str, np.ndarray]:
    gates = GATES[op] * HIDDEN
    return {"w": normal(directions, gates, FEATURES), "r": normal(directions, gates, HIDDEN),
            "b": normal(directions, 2 * gates)}  # fmt: skip


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("op", GATES)
def test_the_parser_takes_every_recurrent_operator(op: str, lengths: bool, name: str, tmp_path: Path) -> None:
    inputs, more = f"float[{TIME}, 1, {FEATURES}] x", ""
    if lengths:
        inputs, more = f"{inputs}, int32[1] len", ", len"
    node = f"{op}<hidden_size={HIDDEN}>(a, w, r, b{more})"
    body = f"({inputs}) => (float[{TIME}, 1, 1, {HIDDEN}] y) {{ a = Relu(x) y = {node} }}"
    model = ir.from_proto(onnx.load(network(tmp_path, body, weights(op, 1), 22)))
    infer_shapes(model)
    decision = precision(name).apply(model, Request())[-1]
    save(model, tmp_path / "typed.onnx")
    assert tensorrt.check(tensorrt.find(None), tmp_path / "typed.onnx") == ()
    if lengths:
        assert (decision.precision, decision.reason) == ("fp32", "TensorRT's parser refuses sequence_lens in 16 bits")
    elif op != "GRU":
        assert decision.precision == name


@pytest.mark.parametrize("name", ["int8", "fp16"])
def test_a_network_over_time_with_lengths_builds(name: str, tmp_path: Path, cli: Cli) -> None:
    body = f"""(float[time, 1, {FEATURES}] x, int32[1] len) => (float[time, 1, 24] y, float[2, 1, {HIDDEN}] h) {{
        o, h, c = LSTM<hidden_size={HIDDEN}, direction="bidirectional">(x, w, r, b, len)
        t = Transpose<perm=[0, 2, 1, 3]>(o) f = Reshape(t, join) z = MatMul(f, v) y = Add(z, a) }}"""
    more = {"join": np.array([0, 0, 2 * HIDDEN]), "v": normal(2 * HIDDEN, 24), "a": normal(24)}
    network(tmp_path, body, {**weights("LSTM", 2), **more})
    samples = {"x": normal(40, TIME, 1, FEATURES, scale=1), "len": np.full((40, 1), TIME, np.int32)}
    shape = f"x=1x1x{FEATURES}:{TIME}x1x{FEATURES}:{TIME}x1x{FEATURES}"
    done = convert(cli, tmp_path, name, samples, "--backend", "tensorrt", "--shape", shape)
    assert done.code == 0, done.err
    fed = [{key: array[i] for key, array in samples.items()} for i in range(8)]
    assert sqnr(tmp_path, fed) > (20 if name == "int8" else 45)


@pytest.mark.parametrize(("op", "name"), [("LSTM", "fp16"), ("LSTM", "int8"), ("GRU", "bf16")])
def test_a_recurrent_node_in_fp32_builds_behind_a_layer_in_16_bits(
    op: str, name: str, tmp_path: Path, cli: Cli
) -> None:
    # TensorRT for RTX 1.7 alone fails if there are always two steps or more.
    inputs, lengths = f"float[1, time, {FEATURES}] x", ""
    samples = {"x": normal(40, 1, TIME, FEATURES, scale=1)}
    if op == "LSTM":
        inputs, lengths = f"{inputs}, int32[1] len", ", , len"
        samples["len"] = np.full((40, 1), TIME, np.int32)
    body = f"""({inputs}) => (float[time, 1, 1, {HIDDEN}] y) {{ a = MatMul(x, u) t = Transpose<perm=[1, 0, 2]>(a)
        y = {op}<hidden_size={HIDDEN}>(t, w, r{lengths}) }}"""
    gates = GATES[op] * HIDDEN
    network(
        tmp_path, body, {"u": normal(FEATURES, HIDDEN), "w": normal(1, gates, HIDDEN), "r": normal(1, gates, HIDDEN)}
    )
    shape = f"x=1x2x{FEATURES}:1x{TIME}x{FEATURES}:1x{TIME}x{FEATURES}"
    done = convert(cli, tmp_path, name, samples, "--backend", "tensorrt", "--shape", shape)
    assert done.code == 0, done.err
    decisions = {
        each["op"]: each for each in json.loads((tmp_path / "run" / "report.json").read_text())["typed"]["decisions"]
    }
    assert (decisions[op]["precision"], decisions["MatMul"]["precision"]) == ("fp32", name)
