"""Whole conversions on a GPU: speed, layers, wrong nodes, the largest batch, and TensorRT's own calibrator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine.encoder import transformer
from engine.mobile import depthwise
from support import CALIB, DIGITS, EVAL

from trtopt.codec import decode
from trtopt.engine.trt.locate import find
from trtopt.stages.fault import search
from trtopt.types import EngineLayer

pytestmark = pytest.mark.gpu

SHAPE = "input=1x1x28x28:8x1x28x28:32x1x28x28"


def convert(cli, folder: Path, *more: object, precision: str = "int8", shape: str = SHAPE):
    data = ["--calib", CALIB, "--data", EVAL, "--samples", "128", "--shape", shape, "--tactic-sources", "-CUDNN"]
    return cli("convert", DIGITS, "-p", precision, *data, "-o", folder, *more)


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_engine_is_timed_beside_fp16_and_fp32_in_turns(cli, tmp_path):
    done = convert(cli, tmp_path, "--gate", "cosine=0.9,latency_mean=1000ms")
    assert done.code in (0, 1), done.err  # an engine may be wrong
    found = report(tmp_path)["benchmark"]
    assert [target["name"] for target in found["targets"]] == ["FP16", "FP32", "INT8"]
    assert {timing["batch"] for timing in found["timings"]} == {1, 8}
    assert all(target["device"] == "cuda" and target["load"] > 0 for target in found["targets"])
    assert all(timing["parts"]["compute"] > 0 for timing in found["timings"] if timing["copies"])
    print(done.out)


def test_the_layers_of_the_engine_are_timed(cli, tmp_path):
    done = convert(cli, tmp_path)
    found, layers = report(tmp_path)["benchmark"]["layers"], report(tmp_path)["engine"]["layers"]
    assert found["batch"] == 8
    assert {layer["name"] for layer in layers if "Convolution" in layer["type"]} <= found["ms"].keys()
    assert sum(found["ms"].values()) > 0
    print(done.err, found["ms"])


def test_the_report_lists_the_layers_of_the_engine(cli, tmp_path):
    convert(cli, tmp_path, "--no-speed")
    layers = report(tmp_path)["engine"]["layers"]
    assert layers
    assert {node for layer in layers for node in layer["nodes"]}
    print(*((layer["name"], layer["type"], layer["precision"], layer["apart"]) for layer in layers), sep="\n")


def test_the_bisection_finds_the_fewest_nodes_that_rid_the_engine_of_a_layer(cli, tmp_path):
    """An engine counts as wrong here if it cannot be built, or computes a certain convolution in INT8."""
    options = ["--no-speed", "--gate", "engine=300dB"]  # another fault would be searched for, too
    tried: dict[tuple[str, ...], bool] = {}

    def right(kept) -> bool:
        if (answer := tried.get(tuple(sorted(kept)))) is not None:
            return answer
        done = convert(cli, tmp_path, *options, *(f"--keep={node}" for node in kept), shape="input=8x1x28x28")
        if done.code == 2:  # TensorRT has no kernel for some fusion
            assert "TensorRT cannot build the network" in done.err
            lowered_by_engine = {wrong}
        else:
            layers = [decode(EngineLayer, each) for each in report(tmp_path)["engine"]["layers"]]
            lowered_by_engine = {node for layer in layers if layer.precision == "int8" for node in layer.nodes}
        print(kept, done.code, done.err.strip()[:300])
        return tried.setdefault(tuple(sorted(kept)), wrong not in lowered_by_engine)

    convert(cli, tmp_path, *options, shape="input=8x1x28x28")
    decisions = [each for each in report(tmp_path)["typed"]["decisions"] if each["precision"] == "int8"]
    wrong = [each["node"] for each in decisions if each["op"] == "Conv"][-1]
    found = search([each["node"] for each in decisions], right).nodes
    assert wrong in found
    assert right(found)
    assert not any(right([node for node in found if node != left_out]) for left_out in found)


def test_the_largest_batch_is_that_of_the_profile_or_none_within_the_limits(cli, tmp_path):
    convert(cli, tmp_path, "--no-speed")
    done = cli("bench", tmp_path, "--max-batch", "--device", "cuda", "-o", tmp_path / "most")
    assert done.code == 0, done.err
    limit = report(tmp_path / "most")["benchmark"]["limit"]
    print(limit)
    assert (limit["batch"], limit["limited_by"], limit["device"]) == (32, "profile", "cuda")
    assert limit["total"] > limit["weights"] + limit["inputs_outputs"] > 0
    for flag, value in (("--latency-limit", "1us"), ("--memory-limit", "1MiB")):
        none = cli("bench", tmp_path, "--max-batch", "--device", "cuda", flag, value, "-o", tmp_path / flag)
        print(none.out, none.err)
        assert none.code == 1
        assert report(tmp_path / flag)["benchmark"]["limit"]["batch"] == 0


def test_tensorrts_own_calibrator_chooses_the_scales(cli, tmp_path):
    if not find().can.calibrator:
        pytest.skip("this TensorRT has none")
    done = convert(cli, tmp_path, "--method", "native", "--no-speed", "--no-guard")
    assert done.code in (0, 1), done.err
    table = json.loads((tmp_path / "calibration.json").read_text())
    assert table["method"] == "native"
    assert "own calibrator" in done.out
    print(done.out)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_transformer_of_any_batch_computes_its_graph(cli, tmp_path, precision):
    model = transformer(tmp_path / "encoder.onnx")
    samples = model.with_suffix(".npy")
    ranges = ["--shape", "x=1x16x32:8x16x32:64x16x32", "--tactic-sources", "-CUDNN", "--allow-inconclusive"]
    done = cli(
        "convert", model, "-p", precision, "--calib", samples, "--data", samples, *ranges, "-o", tmp_path / "run"
    )
    assert done.code == 0, done.err
    gates = report(tmp_path / "run")["comparison"]["gates"]
    assert [gate["verdict"] for gate in gates if gate["metric"] == "engine"] == ["pass"]
    print(done.out)


@pytest.mark.parametrize("behind", ["HardSwish(b)", "Add(b, r)", "LeakyRelu(b)"])
def test_a_network_with_depthwise_convolutions_computes_its_graph_in_int8(cli, tmp_path, behind):
    model = depthwise(tmp_path / "mobile.onnx", behind)
    samples = model.with_suffix(".npy")
    ranges = ["--shape", "x=1x3x32x32:8x3x32x32:64x3x32x32", "--tactic-sources", "-CUDNN", "--allow-inconclusive"]
    done = cli("convert", model, "-p", "int8", "--calib", samples, "--data", samples, *ranges, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    found = report(tmp_path / "run")
    assert [gate["verdict"] for gate in found["comparison"]["gates"] if gate["metric"] == "engine"] == ["pass"]
    precisions = {each["node"]: each["precision"] for each in found["typed"]["decisions"]}
    assert (precisions["stem"], precisions["deep"], precisions["point"]) == ("int8", "fp16", "int8")
    print(done.out)
