"""The audit of networks from the real parser of TensorRT for RTX."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt.audit import audit_network, count_inspected, described, inspect_engine
from trtopt.engine.trt.diagnosis import logger
from trtopt.engine.trt.versions import RTX
from trtopt.errors import AuditError
from trtopt.events import silent
from trtopt.graph.file import describe, load_ir
from trtopt.graph.prepare import infer_shapes, save
from trtopt.precision import Request, precision
from trtopt.precision.passes.placement import place
from trtopt.types import CalibrationTable, Decision, TypedModel


@pytest.fixture(scope="module")
def trt():
    return tensorrt.find(RTX)


@pytest.fixture
def network(trt):
    """Return a function that parses a typed model; the parser lives as long as the test."""
    alive = []

    def parse(typed):
        builder = trt.module.Builder(logger(trt.name))
        parsed = builder.create_network(1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.module.OnnxParser(parsed, logger(trt.name))
        assert parser.parse_from_file(str(typed.onnx.path))
        alive.extend((parser, parsed, builder))
        return parsed

    return parse


def small_net(path):
    random = np.random.default_rng(0)
    constants = {
        "w": random.normal(size=(32, 32, 3, 3)),
        "v": random.normal(size=(32, 32, 3, 3)),
        "g": random.normal(size=(32, 20)),
        "b": random.normal(size=20),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v"], ["d"], "conv2", pads=[1] * 4),
        helper.make_node("Add", ["d", "x"], ["a"], "residual"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "g", "b"], ["y"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 20])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), str(path))


def typed_net(folder, name, rest="fp16"):
    """Return the small network, typed by trtopt."""
    small_net(folder / "fp32.onnx")
    model = load_ir(folder / "fp32.onnx")
    infer_shapes(model)
    scales = dict.fromkeys(place(model).tensors(), 0.05)
    table = CalibrationTable(method="minmax", scales=scales) if precision(name).FORMAT.scaled else None
    decisions = precision(name).apply(model, Request(rest=rest, table=table, ranges={}))
    save(model, folder / "typed.onnx")
    return TypedModel(onnx=describe(folder / "typed.onnx"), precision=name, rest=rest, decisions=decisions)


def one_node(path, op, *, name="node", dtype=TensorProto.FLOAT16, **attributes):
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], name, **attributes)],
        "g",
        [helper.make_tensor_value_info("x", dtype, [2, 4])],
        [helper.make_tensor_value_info("y", dtype, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return describe(path)


def claim(typed, name, nodes=None):
    """Return the same graph with another decision for `nodes` (None: for all)."""
    decisions = tuple(
        dataclasses.replace(decision, precision=name) if nodes is None or decision.node in nodes else decision
        for decision in typed.decisions
    )
    return dataclasses.replace(typed, decisions=decisions)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_a_typed_network_has_the_decided_precision(trt, network, tmp_path, name):
    typed = typed_net(tmp_path, name)
    assert audit_network(trt, network(typed), typed) == {name: 6} == typed.counts()


@pytest.mark.parametrize("rest", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("name", "quantized"), [("int8", 4), ("fp8", 3)])
def test_a_quantized_network_has_the_decided_precision(trt, network, tmp_path, name, quantized, rest):
    typed = typed_net(tmp_path, name, rest)
    counts = audit_network(trt, network(typed), typed)
    assert counts == typed.counts()
    assert counts[name] >= quantized


@pytest.mark.parametrize(("claimed", "real"), [("int8", "fp8"), ("fp8", "int8")])
def test_another_quantized_type_than_decided_is_an_error(trt, network, tmp_path, claimed, real):
    typed = claim(typed_net(tmp_path, real), claimed)
    with pytest.raises(AuditError, match=f"node conv1 is .*, not {claimed}"):
        audit_network(trt, network(typed), typed)


@pytest.mark.parametrize(("name", "ampere"), [("fp16", True), ("int8", True), ("fp8", False)])
def test_an_engine_names_the_gpus_that_support_its_precision(trt, tmp_path, name, ampere):
    typed = typed_net(tmp_path, name)
    engine = tensorrt.build(trt, typed, (), tensorrt.BuildPlan(), tmp_path / "e", emit=silent)
    assert engine.audit == typed.counts()
    assert ("8.6" in engine.device) is ampere
    assert "8.9" in engine.device


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_a_graph_left_in_fp32_is_an_error(trt, network, tmp_path, name):
    typed = claim(typed_net(tmp_path, "fp32"), name)
    with pytest.raises(AuditError, match=f"6 of 6 nodes .* Conv node conv1 is fp32, not {name}"):
        audit_network(trt, network(typed), typed)


@pytest.mark.parametrize("node", ["conv1", "gemm", "residual", "pool"])
def test_the_error_names_a_node_that_is_not_quantized(trt, network, tmp_path, node):
    typed = claim(typed_net(tmp_path, "fp16"), "int8", {node})
    with pytest.raises(AuditError, match=f"1 of 6 nodes .* node {node} is fp16, not int8"):
        audit_network(trt, network(typed), typed)


def test_a_quantized_activation_with_a_float_weight_is_not_int8(trt, network, tmp_path):
    weights = np.random.default_rng(0).normal(size=(32, 32, 3, 3)).astype(np.float32)
    constants = {"w": weights, "s": np.float32(0.1), "z": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
        helper.make_node("Conv", ["d", "w"], ["y"], "conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 6, 6])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    decision = Decision(node="conv", op="Conv", precision="int8", reason="claimed")
    typed = TypedModel(onnx=describe(path), precision="int8", rest="fp32", decisions=(decision,))
    with pytest.raises(AuditError, match="Conv node conv is fp32, not int8"):
        audit_network(trt, network(typed), typed)


def test_a_node_in_fp16_that_was_decided_in_fp32_is_an_error(trt, network, tmp_path):
    typed = claim(typed_net(tmp_path, "fp16"), "fp32", {"relu"})
    with pytest.raises(AuditError, match="Relu node relu is fp16, not fp32"):
        audit_network(trt, network(typed), typed)


def test_a_node_that_the_parser_computes_in_fp32_counts_as_fp32(trt, network, tmp_path):
    model = one_node(tmp_path / "m.onnx", "ReduceL2", axes=[1], keepdims=1)
    decision = Decision(node="node", op="ReduceL2", precision="fp16", reason="asked for")
    typed = TypedModel(onnx=model, precision="fp16", rest="fp16", decisions=(decision,))
    assert audit_network(trt, network(typed), typed) == {"fp32": 1}


def test_the_same_node_in_an_fp32_graph_is_an_error(trt, network, tmp_path):
    model = one_node(tmp_path / "m.onnx", "ReduceL2", dtype=TensorProto.FLOAT, axes=[1], keepdims=1)
    decision = Decision(node="node", op="ReduceL2", precision="fp16", reason="claimed")
    typed = TypedModel(onnx=model, precision="fp16", rest="fp16", decisions=(decision,))
    with pytest.raises(AuditError, match="ReduceL2 node node is fp32, not fp16"):
        audit_network(trt, network(typed), typed)


def test_an_audit_that_finds_no_node_fails(trt, network, tmp_path):
    model = one_node(tmp_path / "m.onnx", "Relu")
    decision = Decision(node="gone", op="Relu", precision="fp16", reason="asked for")
    typed = TypedModel(onnx=model, precision="fp16", rest="fp16", decisions=(decision,))
    with pytest.raises(AuditError, match="cannot be audited"):
        audit_network(trt, network(typed), typed)


def test_a_missing_convolution_is_an_error_but_other_nodes_may_be_folded(trt, network, tmp_path):
    typed = typed_net(tmp_path, "fp16")
    gone = {"flatten", "relu"}
    lost = tuple(dataclasses.replace(d, node="gone") if d.node in gone else d for d in typed.decisions)
    assert audit_network(trt, network(typed), dataclasses.replace(typed, decisions=lost))["folded"] == 1
    lost = tuple(dataclasses.replace(d, node="gone") if d.node == "conv2" else d for d in typed.decisions)
    with pytest.raises(AuditError, match=r"1 of 6 nodes .* Conv node gone, decided as fp16, is missing"):
        audit_network(trt, network(typed), dataclasses.replace(typed, decisions=lost))


@pytest.mark.parametrize("name", ["block[0]/conv", "a | b", "a]b", "x\ny"])
def test_a_node_is_found_whatever_characters_its_name_contains(trt, network, tmp_path, name):
    model = one_node(tmp_path / "m.onnx", "Relu", name=name)
    decision = Decision(node=name, op="Relu", precision="fp16", reason="asked for")
    typed = TypedModel(onnx=model, precision="fp16", rest="fp16", decisions=(decision,))
    assert audit_network(trt, network(typed), typed) == {"fp16": 1}


def test_a_node_inside_an_if_is_found_by_its_own_name(trt, network, tmp_path):
    def branch(op, name):
        node = helper.make_node(op, ["x"], [f"{name}_y"], name)
        return helper.make_graph([node], f"{name}_graph", [], [helper.make_tensor_value_info(f"{name}_y", 10, [2, 4])])

    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("Exp", "exp"), else_branch=branch("Relu", "r"))
    inputs = [helper.make_tensor_value_info("x", 10, [2, 4]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 10, [2, 4])])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    decision = Decision(node="exp", op="Exp", precision="fp16", reason="asked for")
    typed = TypedModel(onnx=describe(path), precision="fp16", rest="fp16", decisions=(decision,))
    assert audit_network(trt, network(typed), typed) == {"fp16": 1}


def test_the_error_lists_the_first_nodes_and_counts_the_others(trt, network, tmp_path):
    typed = claim(typed_net(tmp_path, "fp32"), "fp16")
    with pytest.raises(AuditError, match="and 2 more"):
        audit_network(trt, network(typed), typed)


def test_an_engine_that_cannot_be_loaded_here_is_not_inspected(trt):
    assert inspect_engine(trt, b"not an engine") is None


@pytest.mark.parametrize(
    ("int8", "fp16", "fp32"),
    [
        (
            {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"},
            {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"},
            {"Format/Datatype": "Float"},
        ),
        (
            {"DataType": "Int8", "Format": "kCHW32"},
            {"DataType": "Half", "Format": "kHWC8"},
            {"DataType": "Float", "Format": "kLINEAR"},
        ),
    ],
    ids=["TensorRT 10", "TensorRT 11"],
)
@pytest.mark.parametrize("io", [{"Bindings": ["x"]}, {"I/O Tensors": [{"Name": "x", "DataType": "Float"}]}])
def test_layers_in_the_engine_inspector_are_counted_by_their_input_type(int8, fp16, fp32, io):
    layers = [
        {"Name": "quantize", "Inputs": [fp32], "Outputs": [int8]},
        {"Name": "conv", "Inputs": [int8], "Outputs": [int8]},
        {"Name": "last", "Inputs": [fp16], "Outputs": [fp32]},
        {"Name": "constant", "Inputs": [], "Outputs": [fp16]},
        "a name alone",
    ]
    assert count_inspected(described(json.dumps({"Layers": layers, **io}))) == {"int8": 1, "fp16": 2, "fp32": 1}


def test_bfloat16_is_not_mistaken_for_float16_or_float():
    tensors = [{"Format/Datatype": text} for text in ("BFloat16", "Row major linear BF16 format")]
    layers = [{"Inputs": [tensor], "Outputs": []} for tensor in tensors]
    assert count_inspected(described(json.dumps({"Layers": layers}))) == {"bf16": 2}
