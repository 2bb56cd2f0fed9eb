"""TensorRT in a process of its own: results, errors, crashes and cancellation reach the caller."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt import child as child_process
from trtopt.codec import encode
from trtopt.engine.trt import apart
from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt.versions import RTX
from trtopt.errors import BuildError, UsageError
from trtopt.events import Progress, silent
from trtopt.graph.file import describe
from trtopt.types import ShapeRange, TypedModel

OPTIONS = tensorrt.BuildPlan()


@pytest.fixture(scope="module")
def trt():
    return tensorrt.find(RTX)


def typed(path, op="Conv"):
    weight = numpy_helper.from_array(np.ones((8, 16, 1, 1), np.float32), "w")
    node = helper.make_node(op, ["x", "w"] if op == "Conv" else ["x"], ["y"], "node 1")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8 if op == "Conv" else 16, 8, 8])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    graph = helper.make_graph([node], "g", [x], [y], [weight] if op == "Conv" else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return TypedModel(onnx=describe(path), precision="fp32", rest="fp32", decisions=())


def test_an_engine_is_built_with_progress(trt, tmp_path):
    events = []
    out = tmp_path / "model.engine"
    engine = apart.build(trt, typed(tmp_path / "m.onnx"), (), OPTIONS, out, emit=events.append)
    assert engine.path == out
    assert engine.size_bytes == out.stat().st_size
    assert [event for event in events if isinstance(event, Progress)]


def test_rejected_nodes_are_returned(trt, tmp_path):
    model = typed(tmp_path / "m.onnx", op="Det")
    assert [node.op for node in apart.check(trt, model.onnx.path, silent).rejections] == ["Det"]


def test_an_error_arrives_as_it_was_raised(trt, tmp_path):
    wrong = (ShapeRange(name="z", min=(1,), opt=(1,), max=(1,)),)
    with pytest.raises(UsageError, match="--shape z: the model has no such input") as error:
        apart.build(trt, typed(tmp_path / "m.onnx"), wrong, OPTIONS, tmp_path / "e", emit=silent)
    assert "Its inputs are: x" in error.value.fix


@pytest.fixture
def child(monkeypatch):
    """Replace the program of the child."""

    def make(program):
        monkeypatch.setattr(child_process, "_PROGRAM", program)

    return make


def test_a_crash_of_the_parser_names_the_node(trt, tmp_path, child):
    child(
        "import sys, os, signal, json; sys.stdin.readline(); print(json.dumps({{'at': 'Range node /positions'}}), "
        "flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    with pytest.raises(BuildError, match="crashed at Range node /positions: SIGSEGV") as error:
        apart.check(trt, typed(tmp_path / "m.onnx").onnx.path, silent)
    assert "--shape" in error.value.fix


def test_a_crash_during_the_build_says_so_and_shows_the_last_line_of_the_log(trt, tmp_path, child):
    child(
        'import sys; sys.stdin.readline(); print(\'{{"at": ""}}\', flush=True); '
        "print('out of luck', file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(BuildError, match="crashed while it built the engine: exit code 3; out of luck") as error:
        apart.check(trt, typed(tmp_path / "m.onnx").onnx.path, silent)
    assert "--keep" in error.value.fix


def test_an_exception_of_emit_ends_the_child(trt, tmp_path, child):
    pid_file = tmp_path / "pid"
    child(
        f"import sys, os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); sys.stdin.readline(); "
        'print(\'{{"event": "Warned", "fields": {{"message": "m"}}}}\', flush=True); time.sleep(60)'
    )

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apart.check(trt, typed(tmp_path / "m.onnx").onnx.path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIG_DFL)


@pytest.mark.parametrize(("version", "patience"), [("8.5.3.1", "_WRITE_SECONDS"), ("10.3.0", "_STOP_SECONDS")])
def test_only_a_builder_that_can_be_cancelled_has_time_to_stop(trt, tmp_path, child, monkeypatch, version, patience):
    child(
        "import sys, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.stdin.readline(); "
        'print(\'{{"event": "Warned", "fields": {{"message": "m"}}}}\', flush=True); time.sleep(4); '
        f"open({str(tmp_path / 'ended')!r}, 'w')"
    )
    for name in ("_WRITE_SECONDS", "_STOP_SECONDS"):
        monkeypatch.setattr(apart, name, 0.1 if name == patience else 600.0)

    def interrupt(_):
        raise KeyboardInterrupt

    of_version = dataclasses.replace(trt, name="tensorrt", version=version)
    model = typed(tmp_path / "m.onnx").onnx.path
    with pytest.raises(KeyboardInterrupt):
        apart.check(of_version, model, interrupt)
    assert not (tmp_path / "ended").exists()


def test_the_child_ends_without_an_abort(trt, tmp_path):
    request = encode(apart.Check(tensorrt=trt.name, model=typed(tmp_path / "m.onnx").onnx.path))
    child = subprocess.Popen(
        [sys.executable, "-c", child_process._PROGRAM.format(root=child_process._ROOT)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    task = {"function": "trtopt.engine.trt.apart:_check", "request": request}
    child.stdin.write(json.dumps(task).encode() + b"\n")
    child.stdin.flush()
    assert child.wait(60) == 0  # while its stdin is still open
    assert b"Fatal" not in child.stderr.read()
    for stream in (child.stdin, child.stdout, child.stderr):
        stream.close()


def test_a_file_named_onnx_in_the_current_folder_does_not_hide_the_package(trt, tmp_path, monkeypatch):
    (tmp_path / "onnx.py").write_text("raise RuntimeError('hidden')")
    model = typed(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert sys.modules["onnx"] is onnx
    assert apart.check(trt, model.onnx.path, silent).rejections == ()
