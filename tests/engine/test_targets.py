"""`--target`: the graph obeys the rules of the platform's TensorRT, and build.sh builds it there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine.encoder import transformer
from onnx import TensorProto, numpy_helper
from support import CALIB, DIGITS, EVAL

from trtopt import api
from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt.locate import load
from trtopt.engine.trt.platforms import Platform, platform, platforms
from trtopt.engine.trt.versions import RTX
from trtopt.errors import ModelError, UsageError
from trtopt.graph.older import lower_opset
from trtopt.graph.spelled import spell_out
from trtopt.manifest import file_digest

# Every rule set once, and both DLAs: the other names differ in the version alone.
TARGETS = ("trt-8.5", "trt-8.6", "trt-10.0", "trt-10.3", "trt-10.12", "trt-11.5", "jetpack-5-dla", "jetpack-6-dla")
# trtexec's flags, from its help in TensorRT 8.5, 8.6, and 10.
COMMON = {"onnx", "saveEngine", "minShapes", "optShapes", "maxShapes", "noTF32", "profilingVerbosity", "memPoolSize"}
COMMON |= {"exportLayerInfo", "timingCacheFile", "tacticSources", "useDLACore", "allowGPUFallback"}
WEAK = {"int8", "fp16", "calib", "precisionConstraints", "layerPrecisions", "layerOutputTypes"}


def broken(path: Path, target: Platform) -> list[str]:
    """Return the rules of a platform's TensorRT that a graph breaks."""
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    quantizers = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    operators = {node.op_type for node in proto.graph.node}
    scales = {types[node.input[1]] for node in quantizers}
    rules = {
        "opset": proto.opset_import[0].version <= target.can.opset,
        "three inputs of Q and DQ": all(len(node.input) == 3 for node in quantizers),
        "zero points of 0": all(
            not numpy_helper.to_array(t).astype(np.float32).any()
            for t in proto.graph.initializer
            if t.name in {node.input[2] for node in quantizers}
        ),
        "FP32 alone": target.can.strong_typing or not set(types.values()) & {TensorProto.FLOAT16, TensorProto.BFLOAT16},
        "scales": scales
        <= ({TensorProto.FLOAT, TensorProto.FLOAT16} if target.can.strong_typing else {TensorProto.FLOAT}),
        "no operator that it lacks": not target.can.lacks & operators,
        "no Q and DQ on a DLA": not target.dla or not quantizers,
        "fixed shapes on a DLA": not target.dla
        or all(dim.dim_value for value in proto.graph.input for dim in value.type.tensor_type.shape.dim),
    }
    return [rule for rule, holds in rules.items() if not holds]


def convert(cli, folder, model, target, *more):
    calib = CALIB if model == DIGITS else model.with_suffix(".npy")
    shape = {"input": "4x1x28x28"} if model == DIGITS else {"x": "4x16x32"}
    fixed = [f"--shape={name}={size}" for name, size in shape.items()] if target.endswith("dla") else []
    quick = ["--method", "minmax", "--no-guard", "--no-equalization", "--no-compare", "--samples", "8"]
    return cli(
        "convert", model, "-p", "int8", "--calib", calib, *quick, *fixed, "--target", target, "-o", folder, *more
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", ["digits", "transformer"])
def test_the_graph_obeys_the_rules_of_the_platform(cli, tmp_path, network, target):
    model = DIGITS if network == "digits" else transformer(tmp_path / "encoder.onnx")
    done = convert(cli, tmp_path / "run", model, target)
    assert done.code == 0, done.err
    first = next(line for line in done.out.splitlines() if line.strip())
    assert first == f"typed graph for {platform(target).title} ({target}); build.sh builds it on the device"
    assert broken(tmp_path / "run/target.onnx", platform(target)) == []
    script = (tmp_path / "run/build.sh").read_text()
    assert subprocess.run(["sh", "-n", tmp_path / "run/build.sh"], check=False).returncode == 0
    flags = set(re.findall(r"^  --(\w+)", script, re.MULTILINE))
    weak = not platform(target).can.strong_typing or target.endswith("dla")
    oldest = "8.5" in platform(target).title
    known = COMMON | (WEAK if weak else {"stronglyTyped"}) | ({"buildOnly", "preview"} if oldest else {"skipInference"})
    assert flags <= known
    assert ("preview" in flags) == oldest  # --preview=+fasterDynamicShapes0805
    assert ("stronglyTyped" in flags) == (not weak and "11" not in target)


def test_the_graph_for_8_5_computes_what_the_typed_graph_does(cli, tmp_path):
    model = transformer(tmp_path / "encoder.onnx")
    convert(cli, tmp_path / "run", model, "trt-8.5", "--rest", "fp32")
    feed = {"x": np.load(model.with_suffix(".npy"))}
    typed, target = (open_runner(tmp_path / "run" / name).run(feed)["y"] for name in ("typed.onnx", "target.onnx"))
    assert ((typed - target) ** 2).sum() < 1e-4 * (typed**2).sum()


def test_a_node_kept_in_fp32_is_constrained_in_the_script_of_a_weakly_typed_version(cli, tmp_path):
    convert(cli, tmp_path, DIGITS, "trt-8.6", "--keep", "/0/Conv_output_0=fp32")
    script = (tmp_path / "build.sh").read_text()
    assert "--precisionConstraints=prefer" in script
    assert "--layerPrecisions=" in script
    assert "/0/Conv_output_0:fp32" in script


def test_the_constraints_of_a_network_without_q_dq_nodes_are_obeyed(cli, tmp_path):
    flags = ["--shape", "input=4x1x28x28", "--no-compare", "--target", "trt-8.6"]
    done = cli("convert", DIGITS, "-p", "fp16", *flags, "--keep", "/0/Conv_output_0=fp32", "-o", tmp_path)
    assert done.code == 0, done.err
    assert "--precisionConstraints=obey" in (tmp_path / "build.sh").read_text().split()


def test_a_convolution_kept_in_fp16_is_constrained_on_a_dla_where_every_tensor_has_a_scale(cli, tmp_path):
    convert(cli, tmp_path, DIGITS, "jetpack-5-dla", "--keep", "/3/Conv_output_0")
    script = (tmp_path / "build.sh").read_text()
    (line,) = re.findall(r"--layerPrecisions=(\S+)", script)
    assert "--precisionConstraints=obey" in script.split()
    assert "/3/Conv_output_0:fp16" in line.split(",")
    assert "/7/Conv_output_0:fp16" not in line.split(",")


def test_the_cache_of_a_dla_has_every_tensor(cli, tmp_path):
    convert(cli, tmp_path, DIGITS, "jetpack-5-dla")
    header, *lines = (tmp_path / "target.cache").read_text().splitlines()
    assert header == "TRT-8502-EntropyCalibration2"
    scales = {
        name: struct.unpack(">f", bytes.fromhex(value))[0] for name, value in (line.split(": ") for line in lines)
    }
    graph = onnx.load(tmp_path / "target.onnx").graph
    tensors = {value for node in graph.node for value in node.output} | {graph.input[0].name}
    assert not {name for name in tensors if name not in scales}
    assert all(scale > 0 for scale in scales.values())
    assert {"--useDLACore=0", "--calib=target.cache"} <= set((tmp_path / "build.sh").read_text().split())


def test_a_dla_refuses_a_range_of_shapes(cli, tmp_path):
    done = convert(cli, tmp_path, DIGITS, "jetpack-6-dla", "--shape", "input=1x1x28x28:4x1x28x28:8x1x28x28")
    assert done.code == 2
    done = cli("convert", DIGITS, "-p", "fp16", "--calib", CALIB, "--target", "jetpack-6-dla", "-o", tmp_path / "b")
    assert done.code == 2
    assert "the DLA runs fixed shapes only" in done.err


def test_an_unknown_target_is_refused_with_the_nearest_names(cli, tmp_path):
    done = convert(cli, tmp_path, DIGITS, "jetpack6")
    assert done.code == 2
    assert "Did you mean jetpack-6" in done.err
    assert "trt-8.6" in cli("convert", DIGITS, "--target", "trt-8.7", "--no-compare", "-o", tmp_path).err


@pytest.mark.parametrize(
    ("name", "meant"), [("jetpack-6.4", "jetpack-6"), ("JetPack-5.2", "jetpack-5"), ("trt-8.5.3", "trt-8.5")]
)
def test_a_release_of_a_known_platform_suggests_that_platform(name, meant):
    with pytest.raises(UsageError) as caught:
        platform(name)
    assert f"Did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize(
    ("release", "name"), [("jetpack-6.2", "jetpack-6"), ("JetPack-5.1", "jetpack-5"), ("jetpack-7.1", "jetpack-7")]
)
def test_a_release_with_the_same_tensorrt_is_that_platform(release, name):
    assert platform(release) == platform(name)


@pytest.mark.parametrize(
    ("target", "precision"), [("trt-8.6", "fp8"), ("jetpack-5", "bf16"), ("jetpack-6-dla", "fp32")]
)
def test_a_precision_that_the_platform_lacks_is_refused(cli, tmp_path, target, precision):
    done = cli("convert", DIGITS, "-p", precision, "--calib", CALIB, "--target", target, "-o", tmp_path)
    assert done.code == 2
    assert f"--target {target} does not have --precision {precision}" in done.err


def test_bf16_is_refused_where_the_parser_is_too_old(cli, tmp_path):
    done = cli("convert", DIGITS, "-p", "bf16", "--calib", CALIB, "--target", "jetpack-6", "-o", tmp_path)
    assert done.code == 2
    assert "does not have BF16 in ONNX" in done.err


def test_the_report_names_the_files(cli, tmp_path):
    convert(cli, tmp_path, DIGITS, "triton-26.03")
    found = json.loads((tmp_path / "report.json").read_text())["target"]
    assert (found["target"], found["tensorrt"]) == ("triton-26.03", "TensorRT 10.16")
    assert Path(found["script"]).stat().st_mode & 0o111


def test_every_platform_has_rules() -> None:
    for each in platforms().values():
        assert each.can.opset >= 17
    assert platform("trt-10.3").cache_version == 100300
    assert platform("jetpack-6.0").cache_version == 8602
    with pytest.raises(UsageError):
        platform("jetpack-99")


def test_what_has_no_older_form_is_refused_with_its_name(parse) -> None:
    model = parse("(float[n, 4] x) => (float[n, 4] y) { y = Gelu(x) }", opset=20)
    with pytest.raises(ModelError, match="Gelu node y has no form in opset 17: the operator came later"):
        lower_opset(model, 17)


OLDER = [
    "{ y = ReduceMax<keepdims = 1>(x, axes) }",
    "{ a, b = Split<axis = 1, num_outputs = 2>(x)\n y = Add(a, b) }",
    "{ p = Pad(x, pads, zero, axes)\n y = Relu(p) }",
    "{ i = Cast<to = 10, saturate = 1>(x)\n y = Cast<to = 1>(i) }",
    "{ y = LayerNormalization<axis = 1, epsilon = 0.01>(x, s, t) }",
]


@pytest.mark.parametrize("body", OLDER)
def test_the_older_form_computes_the_same(parse, tmp_path, body: str) -> None:
    from trtopt.graph.prepare import check_types, infer_shapes, save

    head = "(float[n, 4] x) => (float[n, k] y) <int64[1] axes = {1}, int64[2] pads = {1, 2}, float zero = {0}, "
    model = parse(f"{head}float[4] s = {{1, 2, 3, 4}}, float[4] t = {{0, 1, 0, 1}}> {body}", opset=19)
    feed = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    save(model, tmp_path / "new.onnx")
    spell_out(model, {"LayerNormalization"}, ())
    lower_opset(model, 17)
    infer_shapes(model)
    save(model, tmp_path / "old.onnx")
    check_types(tmp_path / "old.onnx")
    new, old = (open_runner(tmp_path / name).run(feed)["y"] for name in ("new.onnx", "old.onnx"))
    np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6)
    assert "LayerNormalization" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("target", "flags", "why"),
    [
        ("jetpack-5", ["--version-compatible"], "it came with TensorRT 8.6"),
        ("trt-8.5", ["--optimization-level", "5"], "it came with TensorRT 8.6"),
        ("jetpack-6", ["--tactic-sources", "banana"], "banana is not one of them"),
    ],
)
def test_a_builder_option_that_the_platform_lacks_is_refused(cli, tmp_path, target, flags, why):
    done = convert(cli, tmp_path / "run", DIGITS, target, *flags)
    assert done.code == 2
    assert why in done.err
    assert not (tmp_path / "run" / "build.sh").exists()


def judging(run: Path) -> list[list[str]]:
    """Return the commands in a build.sh, each without the program's name."""
    lines = [shlex.split(line[4:]) for line in (run / "build.sh").read_text().splitlines() if line.startswith("#   ")]
    assert {line[0] for line in lines} == {"trtopt"}
    return [line[1:] for line in lines]


def test_the_commands_that_judge_on_the_device_have_the_gates_and_samples_of_the_conversion(cli, tmp_path):
    """Here, where no engine was built, they judge and time the typed graph."""
    gates = ["--gate", "cosine=0.9,latency_p99@12=5000ms,speedup=0.001x", "--allow-inconclusive"]
    options = ["--kind", "logits=scores", "--samples", "64", *gates]
    given = ["convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, *options]
    run = tmp_path / "run"
    first = cli(*given, "--shape", "input=1x1x28x28:12x1x28x28:24x1x28x28", "--target", "jetpack-6", "-o", run)
    assert first.code == 0, first.err
    adopt, compare, bench = judging(run)
    assert adopt == ["adopt", str(run)]
    second = cli(*compare, "-o", tmp_path / "judged")
    assert second.code == 0, second.err
    gates = [
        json.loads((folder / "report.json").read_text())["comparison"]["gates"] for folder in (run, tmp_path / "judged")
    ]
    assert gates[0] == gates[1]
    assert bench[:4] == ["bench", "FP16_RUN", str(run), "--batch"]
    assert bench[bench.index("--gate") + 1] == "latency_p99@12=5000.0ms,speedup=0.001x"
    timed = cli(*["bench", DIGITS, *bench[2:]], "--seconds", "0.05", "--device", "cpu", "-o", tmp_path / "timed")
    assert timed.code == 0, timed.err
    times = json.loads((tmp_path / "timed/report.json").read_text())["benchmark"]["timings"]
    assert {timing["batch"] for timing in times} == {1, 12}


def test_the_baseline_on_the_device_is_a_file_of_the_run(cli, tmp_path):
    done = cli("convert", DIGITS, "-p", "fp16", "--data", EVAL, "--target", "jetpack-6", "-o", tmp_path)
    assert done.code == 0, done.err
    assert judging(tmp_path)[1][:3] == ["compare", str(tmp_path / "fp32.onnx"), str(tmp_path)]


def test_samples_that_are_python_objects_are_to_be_named_on_the_device(tmp_path):
    data = {"input": np.zeros((4, 1, 28, 28), np.float32)}
    api.convert(DIGITS, precision="fp16", data=data, target="jetpack-6", out=tmp_path)
    assert judging(tmp_path)[1][3:5] == ["--data", "DATA"]


def test_on_jetpack_5_no_command_that_cannot_run_is_named(cli, tmp_path):
    done = cli("convert", DIGITS, "-p", "fp16", "--no-compare", "--target", "jetpack-5", "-o", tmp_path)
    assert done.code == 0, done.err
    script = (tmp_path / "build.sh").read_text()
    assert "trtopt adopt" not in script
    assert "# trtopt cannot judge the engine there" in script


def test_the_files_for_a_device_go_with_the_graph_that_they_are_of(cli, tmp_path):
    given = ["convert", DIGITS, "-p", "fp16", "--no-compare", "-o", tmp_path]
    assert cli(*given, "--target", "jetpack-6").code == 0
    assert cli(*given, "--backend", "onnxruntime").code == 0
    assert (tmp_path / "target.onnx").exists()
    done = cli(*given, "--backend", "onnxruntime", "--keep", "/3/Conv_output_0=fp32")
    assert "the files of an earlier --target are removed" in " ".join(done.out.split())
    assert not (tmp_path / "target.onnx").exists()
    assert not (tmp_path / "build.sh").exists()


def test_an_engine_of_this_machine_does_not_stay_beside_the_files_for_a_device(cli, tmp_path):
    if isinstance(load(RTX), str):
        pytest.skip("TensorRT for RTX is not installed")
    given = ["convert", DIGITS, "-p", "fp16", "--no-compare", "-o", tmp_path]
    assert cli(*given).code == 0
    assert (tmp_path / "model.engine").exists()
    done = cli(*given, "--target", "jetpack-6")
    assert "the engine of an earlier run is removed: it is not for jetpack-6" in " ".join(done.out.split())
    assert not (tmp_path / "model.engine").exists()


def test_a_gate_on_speed_is_left_to_the_device(cli, tmp_path):
    given = ["convert", DIGITS, "-p", "fp16", "--data", EVAL, "--gate", "cosine=0.9,latency_p99=5ms"]
    done = cli(*given, "--target", "jetpack-6", "-o", tmp_path)
    assert done.code == 4
    assert "the engine is judged on the device, by the commands in build.sh" in " ".join(done.out.split())


def test_a_dry_run_names_the_files_for_the_device_and_the_guard(cli, tmp_path):
    given = ["convert", DIGITS, "-p", "int8", "--calib", CALIB, "--target", "jetpack-6", "--dry-run", "-o", tmp_path]
    would_run = json.loads(cli(*given, "--format", "json").out)["would_run"]
    assert would_run[-5:] == ["guard", "precision", "target", "compare", "gate"]
    assert "build" not in would_run


def test_a_dla_without_fixed_shapes_is_refused_before_calibration(cli, tmp_path):
    given = ["convert", DIGITS, "-p", "int8", "--calib", CALIB, "--target", "jetpack-6-dla", "-o", tmp_path]
    done = cli(*given)
    assert done.code == 2
    assert "the DLA runs fixed shapes only" in " ".join(done.err.split())
    assert "calibrate" not in done.err


def test_without_samples_only_the_engine_is_adopted_on_the_device(cli, tmp_path):
    done = cli("convert", DIGITS, "-p", "fp16", "--no-compare", "--target", "jetpack-6", "-o", tmp_path)
    assert done.code == 0, done.err
    assert judging(tmp_path) == [["adopt", str(tmp_path)]]


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    """Put a program in the place of trtexec that only writes an engine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "trtexec").write_text("#!/bin/sh\necho engine > model.engine\n")
    (folder / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_script_records_the_graph_that_the_engine_was_built_from(cli, tmp_path, trtexec):
    run = tmp_path / "run"
    assert cli("convert", DIGITS, "-p", "fp16", "--no-compare", "--target", "jetpack-6", "-o", run).code == 0
    subprocess.run(["sh", run / "build.sh"], check=True)
    assert (run / "model.engine.graph").read_text() == f"{file_digest(run / 'target.onnx')}  target.onnx\n"


def test_the_name_of_a_file_does_not_become_a_command_of_the_script(cli, tmp_path, trtexec):
    data = tmp_path / "a\ntouch PWNED #.npz"
    shutil.copy(EVAL, data)
    run = tmp_path / "run"
    done = cli("convert", DIGITS, "-p", "fp16", "--data", data, "--target", "jetpack-6", "-o", run)
    assert done.code == 0, done.err
    subprocess.run(["sh", run / "build.sh"], check=True)
    assert (run / "model.engine").exists()
    assert not (run / "PWNED").exists()


def test_an_operator_that_the_tensorrt_here_does_not_support_is_a_warning(cli, tmp_path):
    if isinstance(load(RTX), str):
        pytest.skip("TensorRT for RTX is not installed")
    body = "g (float[2, 3, 3] x) => (float[2] y) { y = Det(x) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 19]> {body}')
    onnx.save(proto, tmp_path / "det.onnx")
    done = cli(
        "convert", tmp_path / "det.onnx", "-p", "fp16", "--no-compare", "--target", "jetpack-6", "-o", tmp_path / "run"
    )
    assert done.code == 0, done.err
    assert "TensorRT 10.3.0 may not support this either" in " ".join(done.out.split())
