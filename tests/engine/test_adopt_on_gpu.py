"""`trtopt adopt` on a GPU: an engine that was built without trtopt, as build.sh does, is judged and timed as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import CALIB, DIGITS, EVAL

from trtopt.engine.trt.locate import find

pytestmark = pytest.mark.gpu

SHAPE = "input=1x1x28x28:8x1x28x28:32x1x28x28"


def built_without_trtopt(graph: Path) -> bytes:
    """Return an engine of an INT8 graph in the dialect of TensorRT 8, with the flags that build.sh gives trtexec."""
    trt = find("tensorrt").module
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    assert trt.OnnxParser(network, logger).parse_from_file(str(graph))
    config = builder.create_builder_config()
    for flag in (trt.BuilderFlag.INT8, trt.BuilderFlag.FP16):
        config.set_flag(flag)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_tactic_sources(config.get_tactic_sources() & ~(1 << int(trt.TacticSource.CUDNN)))
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, 1, 28, 28), (8, 1, 28, 28), (32, 1, 28, 28))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture
def run(cli, tmp_path):
    done = cli(
        *("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, "--samples", "128"),
        *("--shape", SHAPE, "--target", "trt-8.5", "-o", tmp_path / "run"),
    )
    assert done.code == 0, done.err
    return tmp_path / "run"


def test_the_engine_of_another_program_is_judged_timed_and_inspected_as_the_engine_of_the_run(cli, run, tmp_path):
    (run / "model.engine").write_bytes(built_without_trtopt(run / "target.onnx"))
    done = cli("adopt", run)
    assert done.code == 0, done.err
    assert "model.engine" in done.out
    assert find("tensorrt").title in done.out
    out = tmp_path / "judged"
    done = cli("compare", run / "fp32.onnx", run, "--data", EVAL, "--gate", "cosine=0.9", "-o", out)
    report = json.loads((out / "report.json").read_text())
    assert report["engine"]["layers"]
    assert report["engine"]["audit"]["int8"] > 0
    gates = {gate["metric"]: gate["verdict"] for gate in report["comparison"]["gates"]}
    assert {"cosine", "engine"} <= gates.keys()
    assert done.code == (0 if set(gates.values()) == {"pass"} else 1), done.err  # an engine may be wrong
    assert cli("bench", run, "--batch", "8", "--seconds", "0.1").code == 0


def test_the_engine_of_another_graph_is_refused_and_nothing_is_recorded(cli, run, tmp_path):
    done = cli(
        *(
            "convert",
            DIGITS,
            "-p",
            "fp16",
            "--no-compare",
            "--shape",
            SHAPE,
            "--tactic-sources",
            "-CUDNN",
            "--no-speed",
        ),
        *("-o", tmp_path / "other"),
    )
    assert done.code == 0, done.err
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["precision"]["result"]["onnx"]["outputs"][0]["name"] = "scores"
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = (run / "manifest.json").read_bytes()
    done = cli("adopt", run, tmp_path / "other/model.engine")
    assert done.code == 2
    assert "another graph" in done.err
    assert (run / "manifest.json").read_bytes() == before
    assert not (run / "model.engine").exists()
