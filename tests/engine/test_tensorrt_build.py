"""The real parser and builder of TensorRT for RTX: engines, errors, progress, and cancellation."""

import _thread
import dataclasses
import hashlib
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt.diagnosis import logger
from trtopt.engine.trt.progress import build_serialized, join
from trtopt.engine.trt.versions import RTX
from trtopt.errors import BuildError, UsageError
from trtopt.events import Progress, Warned, silent
from trtopt.graph.file import describe
from trtopt.types import Decision, ShapeRange, TypedModel

OPTIONS = tensorrt.BuildPlan()
SHAPES = (ShapeRange(name="x", min=(1, 16, 8, 8), opt=(2, 16, 8, 8), max=(4, 16, 8, 8)),)


@pytest.fixture(scope="module")
def trt():
    return tensorrt.find(RTX)


def model(path, nodes, inputs, outputs, constants=(), *, opset=17, external=False):
    def info(entry):
        name, shape, *dtype = entry
        return helper.make_tensor_value_info(name, dtype[0] if dtype else TensorProto.FLOAT, shape)

    tensors = [numpy_helper.from_array(array, name) for name, array in constants]
    graph = helper.make_graph(nodes, "g", [info(i) for i in inputs], [info(o) for o in outputs], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.domain", 1)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=9),
        str(path),
        save_as_external_data=external,
        location="weights.bin",
        size_threshold=0,
    )
    return TypedModel(onnx=describe(path), precision="fp32", rest="fp32", decisions=())


def convolution(path, **more):
    weights = np.random.default_rng(0).normal(size=(8, 16, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    return model(path, nodes, [("x", ["n", 16, 8, 8])], [("y", ["n", 8, 8, 8])], [("w", weights)], **more)


def relu(path, dtype=TensorProto.FLOAT):
    return model(path, [helper.make_node("Relu", ["x"], ["y"], "r")], [("x", [2, 4], dtype)], [("y", [2, 4], dtype)])


def suppression(path):
    return model(
        path,
        [helper.make_node("NonMaxSuppression", ["b", "s", "m", "i"], ["y"], "nms")],
        [("b", [1, 10, 4]), ("s", [1, 2, 10])],
        [("y", ["k", 3], TensorProto.INT64)],
        [("m", np.array([5])), ("i", np.array([0.5], np.float32))],
    )


def test_an_engine_is_written_with_its_description(trt, tmp_path):
    out = tmp_path / "model.engine"
    engine = tensorrt.build(trt, convolution(tmp_path / "m.onnx"), SHAPES, OPTIONS, out, emit=silent)
    data = out.read_bytes()
    assert engine.digest == hashlib.sha256(data).hexdigest()
    assert engine.size_bytes == len(data) > 1000
    assert engine.builder == f"TensorRT-RTX {trt.version}"
    assert "8.6" in engine.device
    assert "12.0" in engine.device
    assert engine.audited.startswith("parsed network")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "model.engine"]


def test_weights_are_found_in_external_data(trt, tmp_path):
    typed = convolution(tmp_path / "m.onnx", external=True)
    assert (tmp_path / "weights.bin").exists()
    engine = tensorrt.build(trt, typed, SHAPES, OPTIONS, tmp_path / "e", emit=silent)
    assert engine.size_bytes > 8 * 16 * 9 * 4


def test_a_fixed_shape_needs_no_profile(trt, tmp_path):
    assert tensorrt.build(trt, relu(tmp_path / "m.onnx"), (), OPTIONS, tmp_path / "e", emit=silent).size_bytes


def test_progress_ends_at_its_total(trt, tmp_path):
    events = []
    tensorrt.build(trt, convolution(tmp_path / "m.onnx"), SHAPES, OPTIONS, tmp_path / "e", emit=events.append)
    assert all(isinstance(event, Progress) and event.stage == "build" for event in events)
    assert len(events) > 3
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].done <= events[-1].total
    assert any(event.note for event in events)


LOG_OF_8_5 = """Parsing node: c [Conv]
After concat removal: 2 layers
=============== Computing reformatting costs:
=============== Computing costs for
*************** Autotuning format combination: Float(76800,1600,40,1) -> Int8(76800,1600,40,1) ***************
--------------- Timing Runner: PWN(h, t) (PointWiseV2)
Tactic: 0x0000000000000000 Time: 0.0147409
=============== Computing costs for
=============== Computing costs for
Engine generation completed in 29.5504 seconds."""


def test_a_builder_without_a_progress_monitor_tells_its_progress_in_its_log(trt):
    class Builder:
        def build_serialized_network(self, network, config):
            for line in LOG_OF_8_5.splitlines():
                logger(trt.module.__name__).log(trt.module.ILogger.VERBOSE, line)
            return b"plan"

    events = []
    old = dataclasses.replace(trt, name="tensorrt", version="8.5.3.1")
    assert build_serialized(old, Builder(), None, None, events.append) == b"plan"
    assert events == [Progress("build", done, 2, "layers timed") for done in (0, 1, 2)]


def test_events_are_emitted_in_the_calling_thread(trt, tmp_path):
    threads = set()
    typed = convolution(tmp_path / "m.onnx")
    tensorrt.build(
        trt, typed, SHAPES, OPTIONS, tmp_path / "e", emit=lambda _: threads.add(threading.current_thread().name)
    )
    assert threads == {threading.current_thread().name}


def test_ctrl_c_cancels_the_build_and_leaves_no_file(trt, tmp_path):
    out = tmp_path / "e"
    pressed = []

    def press(event):
        if not pressed:
            pressed.append(event)
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        tensorrt.build(trt, convolution(tmp_path / "m.onnx"), SHAPES, OPTIONS, out, emit=press)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert not [t for t in threading.enumerate() if t.name == "trtopt-build"]


def test_a_second_ctrl_c_does_not_abandon_the_builder():
    waited_for = threading.Event()

    class Build(threading.Thread):
        def run(self):
            waited_for.wait()
            _thread.interrupt_main()
            time.sleep(0.3)

        def join(self, timeout=None):
            waited_for.set()
            super().join(timeout)

    thread = Build()
    thread.start()
    join(thread)
    assert not thread.is_alive()


def test_the_next_build_after_a_cancelled_one_works(trt, tmp_path):
    def fail(event):
        raise RuntimeError("the listener fails")

    typed = convolution(tmp_path / "m.onnx")
    with pytest.raises(RuntimeError, match="the listener fails"):
        tensorrt.build(trt, typed, SHAPES, OPTIONS, tmp_path / "e", emit=fail)
    assert tensorrt.build(trt, typed, SHAPES, OPTIONS, tmp_path / "e", emit=silent).size_bytes


def test_an_unsupported_operator_is_named_with_its_node(trt, tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"], "r"), helper.make_node("Det", ["a"], ["y"], "my_det")]
    typed = model(tmp_path / "m.onnx", nodes, [("x", [2, 4, 4])], [("y", [2])])
    (rejection,) = tensorrt.check(trt, typed.onnx.path)
    assert (rejection.node, rejection.op, rejection.code) == ("my_det", "Det", "UNSUPPORTED_NODE")
    assert "checkDet" in rejection.message
    with pytest.raises(BuildError, match="Det node my_det") as error:
        tensorrt.build(trt, typed, (), OPTIONS, tmp_path / "e", emit=silent)
    assert "--backend onnxruntime" in error.value.fix
    assert str(tensorrt.rejected((rejection,))) == str(error.value)
    assert not (tmp_path / "e").exists()


def test_a_node_that_the_parser_fails_on_without_its_name_is_named(trt, tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "r"),
        helper.make_node("ScatterElements", ["a", "i", "a"], ["b"], "messages", reduction="add"),
        helper.make_node("Relu", ["b"], ["y"], "last"),
    ]
    indices = ("i", np.zeros((2, 4), np.int64))
    typed = model(tmp_path / "m.onnx", nodes, [("x", [2, 4])], [("y", [2, 4])], [indices], opset=18)
    (rejection,) = tensorrt.check(trt, typed.onnx.path)
    assert (rejection.node, rejection.op) == ("messages", "ScatterElements")


@pytest.mark.parametrize("op", ["HardSwish", "ConvTranspose"], ids=["parser", "builder"])
def test_a_node_that_is_refused_in_its_precision_can_be_kept(trt, tmp_path, op):
    nodes = [helper.make_node(op, ["x", "w"][: 1 + (op == "ConvTranspose")], ["y"], "my node")]
    weights = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4, 1, 1], [0.5] * 16)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [1, 4, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [1, 4, 4, 4])],
        [weights][: len(nodes[0].input) - 1],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), tmp_path / "m.onnx")
    decision = Decision(node="my node", op=op, precision="bf16", reason="requested")
    typed = TypedModel(onnx=describe(tmp_path / "m.onnx"), precision="bf16", rest="bf16", decisions=(decision,))
    with pytest.raises(BuildError, match=f"{op} node my node") as error:
        tensorrt.build(trt, typed, (), OPTIONS, tmp_path / "e", emit=silent)
    assert error.value.fix.startswith("Keep the node in FP32 with --keep 'my node'=fp32")


def test_every_unsupported_node_is_listed_and_one_without_a_name_by_its_index(trt, tmp_path):
    nodes = [helper.make_node("Det", ["x"], ["y"]), helper.make_node("Det", ["x"], ["z"])]
    typed = model(tmp_path / "m.onnx", nodes, [("x", [2, 4, 4])], [("y", [2]), ("z", [2])])
    assert [rejection.node for rejection in tensorrt.check(trt, typed.onnx.path)] == ["#0", "#1"]


def test_the_error_about_a_custom_operator_mentions_the_missing_plugin(trt, tmp_path):
    nodes = [helper.make_node("Foo", ["x"], ["y"], "foo", domain="my.domain")]
    typed = model(tmp_path / "m.onnx", nodes, [("x", [2, 4])], [("y", [2, 4])])
    with pytest.raises(BuildError, match=r"Foo node foo.*Plugin not found.*Export the network without this operator"):
        tensorrt.build(trt, typed, (), OPTIONS, tmp_path / "e", emit=silent)


def test_the_error_about_mixed_types_omits_the_messages_about_a_missing_driver(trt, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    typed = model(tmp_path / "m.onnx", nodes, [("x", [2, 4])], [("y", [2, 4])], [("w", np.ones((4, 4), np.float16))])
    with pytest.raises(BuildError, match=r"MatMul node mm.*type Float.*type Half.*mixes types") as error:
        tensorrt.build(trt, typed, (), OPTIONS, tmp_path / "e", emit=silent)
    for noise in ("cudaError", ".cpp", "Error Code"):
        assert noise not in str(error.value)


def test_the_error_about_a_failed_build_names_the_node(trt, tmp_path):
    typed = suppression(tmp_path / "m.onnx")
    assert tensorrt.check(trt, typed.onnx.path) == ()
    with pytest.raises(BuildError, match="at NonMaxSuppression node nms: nms_0 has no runners") as error:
        tensorrt.build(trt, typed, (), OPTIONS, tmp_path / "e", emit=silent)
    assert "cannot run it" in error.value.fix
    assert ".cpp" not in str(error.value)


def test_errors_of_one_build_do_not_appear_in_the_next(trt, tmp_path):
    with pytest.raises(BuildError):
        tensorrt.build(trt, suppression(tmp_path / "nms.onnx"), (), OPTIONS, tmp_path / "e", emit=silent)
    options = tensorrt.BuildPlan(workspace_bytes=1024)
    with pytest.raises(BuildError, match="--workspace") as error:
        tensorrt.build(trt, convolution(tmp_path / "m.onnx"), SHAPES, options, tmp_path / "e", emit=silent)
    assert "nms" not in str(error.value)


def test_a_file_without_a_graph_is_rejected(trt, tmp_path):
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    (rejection,) = tensorrt.check(trt, empty)
    assert rejection.code == "INVALID_GRAPH"


def test_types_changed_by_tensorrt_are_a_warning(trt, tmp_path):
    events = []
    tensorrt.build(trt, relu(tmp_path / "m.onnx", TensorProto.DOUBLE), (), OPTIONS, tmp_path / "e", emit=events.append)
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert len(warnings) == 2
    assert "x is float32" in warnings[0]
    assert "float64" in warnings[0]


def test_unchanged_types_are_not_a_warning(trt, tmp_path):
    events = []
    tensorrt.build(trt, relu(tmp_path / "m.onnx", TensorProto.FLOAT16), (), OPTIONS, tmp_path / "e", emit=events.append)
    assert not [event for event in events if isinstance(event, Warned)]


def test_a_wrong_decision_stops_the_build_before_a_file_is_written(trt, tmp_path):
    typed = relu(tmp_path / "m.onnx")
    claim = Decision(node="r", op="Relu", precision="fp16", reason="claimed")
    claimed = TypedModel(onnx=typed.onnx, precision="fp16", rest="fp16", decisions=(claim,))
    with pytest.raises(BuildError, match="Relu node r is fp32, not fp16"):
        tensorrt.build(trt, claimed, (), OPTIONS, tmp_path / "e", emit=silent)
    assert not (tmp_path / "e").exists()


def test_an_output_that_cannot_be_written_is_an_os_error_and_leaves_no_file(trt, tmp_path):
    (tmp_path / "e").mkdir()
    with pytest.raises(OSError, match="directory"):
        tensorrt.build(trt, relu(tmp_path / "m.onnx"), (), OPTIONS, tmp_path / "e", emit=silent)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "m.onnx"]


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ((), "no range of shapes"),
        ((ShapeRange(name="z", min=(1,), opt=(1,), max=(1,)),), "the model has no such input"),
        ((ShapeRange(name="x", min=(1, 16), opt=(1, 16), max=(1, 16)),), "rank 2"),
        ((ShapeRange(name="x", min=(1, 3, 8, 8), opt=(1, 3, 8, 8), max=(1, 3, 8, 8)),), "the model expects"),
        ((ShapeRange(name="x", min=(4, 16, 8, 8), opt=(2, 16, 8, 8), max=(1, 16, 8, 8)),), "not in ascending order"),
        (SHAPES * 2, "two ranges"),
    ],
)
def test_a_profile_that_does_not_fit_is_rejected(trt, tmp_path, shapes, why):
    with pytest.raises(UsageError, match=why):
        tensorrt.build(trt, convolution(tmp_path / "m.onnx"), shapes, OPTIONS, tmp_path / "e", emit=silent)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"timing_cache": "t.cache"}, "--timing-cache"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"hardware_compatible": True}, "--hardware-compatible"),
        ({"optimization_level": 6}, "--optimization-level"),
        ({"workspace_bytes": 0}, "--workspace"),
    ],
)
def test_an_option_that_rtx_cannot_use_is_rejected(trt, tmp_path, options, flag):
    with pytest.raises(UsageError, match=f"TensorRT-RTX .* cannot use {flag}"):
        tensorrt.build(trt, relu(tmp_path / "m.onnx"), (), tensorrt.BuildPlan(**options), tmp_path / "e", emit=silent)


def test_workspace_and_level_are_accepted(trt, tmp_path):
    options = tensorrt.BuildPlan(workspace_bytes=1 << 30, optimization_level=5)
    assert tensorrt.build(trt, relu(tmp_path / "m.onnx"), (), options, tmp_path / "e", emit=silent).size_bytes


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_that_cannot_be_written_is_only_a_warning(trt, tmp_path):
    plain, events = dataclasses.replace(trt, name="tensorrt", version="10.13.3"), []
    options = tensorrt.BuildPlan(timing_cache=tmp_path / "none" / "t")
    typed = relu(tmp_path / "m.onnx")
    assert tensorrt.build(plain, typed, (), options, tmp_path / "e", emit=events.append).size_bytes
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert "cannot be written: No such file" in warning


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_options_of_plain_tensorrt_reach_the_builder_and_its_timing_cache_is_saved(trt, tmp_path):
    # TensorRT-RTX has the whole API of plain TensorRT, which the test machines lack: another name skips the check.
    plain = dataclasses.replace(trt, name="tensorrt", version="10.13.3")
    typed, cache = relu(tmp_path / "m.onnx"), tmp_path / "timing.cache"
    options = tensorrt.BuildPlan(timing_cache=cache, hardware_compatible=True)
    tensorrt.build(plain, typed, (), options, tmp_path / "e", emit=silent)
    assert cache.exists()
    tensorrt.build(plain, typed, (), options, tmp_path / "e", emit=silent)
    with pytest.raises(BuildError, match="libnvinfer_lean"):
        tensorrt.build(plain, typed, (), tensorrt.BuildPlan(version_compatible=True), tmp_path / "e", emit=silent)
