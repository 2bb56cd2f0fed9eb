"""`trtopt adopt`: what is recorded, and what is refused.

An engine cannot be loaded without a GPU: here it is a JSON file with the tensors, shapes and layers that TensorRT would
tell. `tests/engine/test_adopt_on_gpu.py` adopts real engines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import CALIB, DIGITS, EVAL

from trtopt.engine import tensorrt
from trtopt.engine.trt import adopted, apart
from trtopt.engine.trt.locate import TensorRT, load
from trtopt.engine.trt.versions import RTX
from trtopt.errors import ModelError
from trtopt.manifest import file_digest
from trtopt.store import read_result
from trtopt.types import Engine, TypedModel

SHAPES = [[1, 1, 28, 28], [8, 1, 28, 28], [32, 1, 28, 28]]


class Loaded:
    """An engine as TensorRT describes it."""

    def __init__(self, path: Path) -> None:
        try:
            self._told = json.loads(path.read_text())
        except ValueError as error:
            raise ModelError(f"{path.name} is not an engine") from error
        self.num_io_tensors = len(self._told["tensors"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._told["tensors"])[index]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self._told["tensors"][name]

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> list[list[int]]:
        return self._told["profile"]

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda _format: json.dumps({"Layers": self._told["layers"]}))


def layer(name: str, precision: str) -> dict[str, object]:
    tensor = {"Name": "t", "Format/Datatype": {"int8": "Int8", "fp16": "FP16", "fp32": "FP32"}[precision]}
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]}


def built(run: Path, **changed: object) -> dict[str, object]:
    """Return the engine that TensorRT would build from the graph of a run: a layer for each node."""
    typed = read_result(run, "precision", TypedModel)
    assert typed is not None
    layers = [layer(decision.node, decision.precision) for decision in typed.decisions]
    tensors = {"input": [-1, 1, 28, 28], "logits": [-1, 10]}
    return {"tensors": tensors, "profile": SHAPES, "layers": layers} | changed


@pytest.fixture
def device(monkeypatch):
    """Return a function that makes this machine one with a GPU and a version of TensorRT."""

    def of(version: str) -> None:
        formats = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="JSON"))
        trt = TensorRT(module=formats, name="tensorrt", version=version, origin=Path())
        monkeypatch.setattr(tensorrt, "has_gpu", lambda: True)
        monkeypatch.setattr(tensorrt, "load", lambda _: trt)
        monkeypatch.setattr(adopted, "deserialize", lambda _, path: Loaded(path))

        def here(trt, request, emit):
            return adopted.adopt(trt, request.typed, request.profile, request.path, emit=emit)

        monkeypatch.setattr(apart, "adopt", here)

    of("10.3.0")
    return of


@pytest.fixture
def run(cli, tmp_path):
    """Return a run in INT8 for a Jetson, of which nothing has been built yet."""
    return converted(cli, tmp_path / "run")


def converted(cli, folder: Path, *flags: object, target: str = "jetpack-6") -> Path:
    shape = "input=" + ":".join("x".join(map(str, each)) for each in SHAPES)
    done = cli(
        *("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--samples", "32", "--no-compare", "--shape", shape),
        *("--target", target, "-o", folder, *flags),
    )
    assert done.code == 0, done.err
    return folder


def write(run: Path, engine: object, *, of: Path | None = None) -> None:
    """Write an engine as build.sh does, with the digest of the graph beside it."""
    (run / "model.engine").write_text(json.dumps(engine))
    (run / "model.engine.graph").write_text(f"{file_digest((of or run) / 'target.onnx')}  target.onnx\n")


def engine_of(run: Path) -> Engine | None:
    return read_result(run, "build", Engine)


def test_an_engine_of_the_graph_becomes_the_engine_of_the_run(cli, device, run, tmp_path):
    write(run, built(run))
    done = cli("adopt", run)
    assert done.code == 0, done.err
    assert "warning" not in done.err
    assert "model.engine" in done.out
    found = engine_of(run)
    assert found is not None
    assert (found.path, found.builder) == (run / "model.engine", "TensorRT 10.3.0")
    assert found.audit["int8"] > 0
    assert all(layer.nodes for layer in found.layers)
    shown = cli("inspect", run)
    assert "TensorRT 10.3.0" in shown.out
    done = cli("compare", run / "fp32.onnx", run, "--data", EVAL, "--samples", "32", "-o", tmp_path / "judged")
    assert json.loads((tmp_path / "judged/report.json").read_text())["engine"]["digest"] == found.digest


def test_a_run_may_be_named_by_a_relative_path_and_be_moved(cli, device, run, tmp_path, monkeypatch):
    write(run, built(run))
    monkeypatch.chdir(tmp_path)
    assert cli("adopt", "run").code == 0
    run.rename(tmp_path / "moved")
    found = engine_of(tmp_path / "moved")
    assert found is not None
    assert found.path == tmp_path / "moved/model.engine"


def test_an_engine_elsewhere_is_copied(cli, device, run, tmp_path):
    write(run, built(run))
    other = tmp_path / "other.plan"
    (run / "model.engine").replace(other)
    (run / "model.engine.graph").replace(tmp_path / "other.plan.graph")
    assert cli("adopt", run, other).code == 0
    assert other.read_bytes() == (run / "model.engine").read_bytes()
    assert engine_of(run) is not None


def test_an_engine_of_an_unknown_graph_is_adopted_with_a_warning(cli, device, run):
    (run / "model.engine").write_text(json.dumps(built(run)))
    done = cli("adopt", run)
    assert done.code == 0
    assert "it is not known which graph" in " ".join(done.err.split())


def test_an_engine_of_an_earlier_graph_is_refused(cli, device, run, tmp_path):
    write(run, built(run))
    converted(cli, run, "--keep", "/3/Conv_output_0")
    refused(cli, run, "was built from another graph than", "Run build.sh of the run again")


def refused(cli, run: Path, *texts: str) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    done = cli("adopt", run)
    assert done.code == 2
    line = " ".join(done.err.split())
    assert line.count("error: ") == 1
    for text in texts:
        assert text in line
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert engine_of(run) is None


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"tensors": {"input": [-1, 1, 28, 28], "scores": [-1, 10]}}, "its inputs and outputs are input, scores, not"),
        ({"profile": [[1, 1, 28, 28], [1, 1, 28, 28], [16, 1, 28, 28]]}, "1x1x28x28:16x1x28x28, not 1x1x28x28:8x1"),
        (
            {"tensors": {"input": [8, 1, 28, 28], "logits": [8, 10]}},
            "for other shapes of input than the run: 8x1x28",
        ),
        ({"layers": [layer("resnet/conv1", "int8")]}, "none of its layers names a node of the graph"),
        ({"layers": [layer("/7/Conv_output_0", "fp16")]}, "no layer of model.engine computes in INT8"),
    ],
    ids=["tensors", "profile", "fixed shape", "layers", "precision"],
)
def test_an_engine_of_something_else_is_refused_and_nothing_is_recorded(cli, device, run, changed, text):
    write(run, built(run, **changed))
    refused(cli, run, text, "build.sh")


def test_an_engine_that_is_not_adopted_yet_is_not_passed_over_in_silence(cli, run, tmp_path):
    write(run, built(run))
    told = f"{run}/model.engine is not used: the manifest does not record it. If build.sh built it: trtopt adopt {run}"
    compared = cli("compare", run / "fp32.onnx", run, "--data", EVAL, "--samples", "8", "-o", tmp_path / "compared")
    timed = cli("bench", run, "--batch", "1", "--seconds", "0.05", "--device", "cpu", "-o", tmp_path / "timed")
    answered = cli("predict", run, "--data", EVAL, "--samples", "8", "--out", tmp_path / "out.jsonl")
    for done in (compared, timed, answered):
        assert done.code == 0, done.err
        assert told in " ".join((done.out + done.err).split())
    packaged = cli("package", run, "--triton", tmp_path / "models", "--engine", "only")
    assert packaged.code == 3
    assert told in " ".join(packaged.err.split())


def test_a_file_that_is_no_engine_is_refused(cli, device, run):
    (run / "model.engine").write_bytes(bytes(100))
    refused(cli, run, "model.engine is not an engine")


def test_layers_without_types_are_a_warning(cli, device, run):
    write(run, built(run, layers=[]))
    done = cli("adopt", run)
    assert done.code == 0
    assert "add --profilingVerbosity=detailed" in done.err


def test_a_node_that_tensorrt_8_fused_into_fp16_is_named_with_what_it_was_fused_with(cli, device, tmp_path):
    run = converted(cli, tmp_path / "run", "--keep", "/6/Add=fp32", target="trt-8.5")
    device("8.5.3.1")
    engine = built(run)
    layers = [each for each in engine["layers"] if each["Name"] not in ("/6/Add", "/2/Relu")]
    write(run, engine | {"layers": [*layers, layer("/2/Relu + /6/Add", "fp16")]})
    fix = "Convert again with --keep /2/Relu=fp32, and run build.sh"
    refused(cli, run, "1 node that must stay in FP32 runs in a lower precision", fix)


def test_timings_and_report_of_another_engine_are_removed(cli, device, run):
    (run / "benchmark.json").write_text("{}")
    write(run, built(run))
    assert cli("adopt", run).code == 0
    assert not (run / "benchmark.json").exists()
    assert (run / "report.json").exists()  # about the graph
    (run / "benchmark.json").write_text("{}")
    assert cli("adopt", run).code == 0
    assert (run / "benchmark.json").exists()  # about this engine
    write(run, built(run, profile=SHAPES, note="another build"))
    assert cli("adopt", run).code == 0
    assert not (run / "benchmark.json").exists()
    assert not (run / "report.json").exists()


def test_a_conversion_that_replaces_an_adopted_engine_says_so(cli, device, run, monkeypatch):
    if isinstance(load(RTX), str):
        pytest.skip("TensorRT for RTX is not installed")
    write(run, built(run))
    assert cli("adopt", run).code == 0
    monkeypatch.undo()
    command = [sys.executable, "-m", "trtopt", "convert", DIGITS, "-p", "int8", "--calib", CALIB, "--samples", "32"]
    done = subprocess.run([*command, "--no-compare", "-o", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the engine that was adopted is replaced by a new build" in " ".join(done.stdout.split())


def test_a_folder_without_a_run_is_refused(cli, tmp_path):
    done = cli("adopt", tmp_path)
    assert done.code == 2
    assert "is not a complete run directory: its manifest does not record a typed graph" in done.err
    assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_exist_is_refused(cli, tmp_path):
    done = cli("adopt", tmp_path / "nowhere")
    assert done.code == 2
    assert "nowhere does not exist" in " ".join(done.err.split())
    assert not (tmp_path / "nowhere").exists()


def test_a_conversion_that_removes_an_adopted_engine_says_so(cli, device, run):
    write(run, built(run))
    assert cli("adopt", run).code == 0
    same = converted(cli, run)
    assert engine_of(same) is not None
    converted(cli, run, "--keep", "/3/Conv_output_0")
    assert "the engine that was adopted is removed" in json.dumps(
        json.loads((run / "report.json").read_text())["notes"]
    )


def test_an_engine_in_the_place_of_the_run_is_refused(cli, run):
    (run / "model.engine").write_bytes(b"")
    done = cli("adopt", run / "model.engine")
    assert done.code == 2
    assert "is not a complete run directory: it is not a folder" in " ".join(done.err.split())


@pytest.mark.parametrize(("name", "text"), [("model.engine", "does not exist. Run build.sh"), ("", "is a folder")])
def test_what_is_no_file_is_refused(cli, run, name, text):
    done = cli("adopt", run, run / name)
    assert done.code == 2
    assert text in " ".join(done.err.split())


def test_without_a_gpu_the_exit_code_is_that_of_the_machine_and_nothing_is_recorded(cli, run, monkeypatch):
    monkeypatch.setattr(tensorrt, "has_gpu", lambda: False)
    (run / "model.engine").write_bytes(b"ftrt" + bytes(100))
    before = (run / "manifest.json").read_bytes()
    done = cli("adopt", run)
    assert done.code == 3
    assert "model.engine cannot be loaded here: this machine has no NVIDIA GPU" in " ".join(done.err.split())
    assert (run / "manifest.json").read_bytes() == before
    assert (run / "model.engine").stat().st_size == 104
