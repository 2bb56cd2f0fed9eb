"""Whole conversions on a GPU: speed, the layers of the engine, and TensorRT's own calibrator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine.encoder import transformer
from support import CALIB, DIGITS, EVAL

from trtopt.engine.trt.locate import find

pytestmark = pytest.mark.gpu

SHAPE = "input=1x1x28x28:8x1x28x28:32x1x28x28"


def convert(cli, folder: Path, *more: object, precision: str = "int8"):
    data = ["--calib", CALIB, "--data", EVAL, "--samples", "128", "--shape", SHAPE, "--tactic-sources", "-CUDNN"]
    return cli("convert", DIGITS, "-p", precision, *data, "-o", folder, *more)


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_engine_is_timed_beside_fp16_and_fp32_in_turns(cli, tmp_path):
    done = convert(cli, tmp_path, "--gate", "cosine=0.9,latency_mean=1000ms")
    assert done.code in (0, 1), done.err  # an engine may be wrong
    found = report(tmp_path)["benchmark"]
    assert [target["name"] for target in found["targets"]] == ["FP16", "FP32", "INT8"]
    assert {timing["batch"] for timing in found["timings"]} == {1, 8}
    assert all(target["device"] == "cuda" for target in found["targets"])
    print(done.out)


def test_the_report_lists_the_layers_of_the_engine(cli, tmp_path):
    convert(cli, tmp_path, "--no-speed")
    layers = report(tmp_path)["engine"]["layers"]
    assert layers
    assert {node for layer in layers for node in layer["nodes"]}
    print(*((layer["name"], layer["type"], layer["precision"], layer["apart"]) for layer in layers), sep="\n")


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
    ranges = ["--shape", "x=1x16x32:8x16x32:64x16x32", "--allow-inconclusive"]
    done = cli(
        "convert", model, "-p", precision, "--calib", samples, "--data", samples, *ranges, "-o", tmp_path / "run"
    )
    assert done.code == 0, done.err
    gates = report(tmp_path / "run")["comparison"]["gates"]
    assert [gate["verdict"] for gate in gates if gate["metric"] == "engine"] == ["pass"]
    print(done.out)
