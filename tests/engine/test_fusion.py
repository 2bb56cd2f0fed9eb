"""Layers of an engine, from the engine inspector's JSON, and what did not fuse."""

from __future__ import annotations

import onnx
import pytest

from trtopt.engine.trt.fusion import engine_layers, unfused, unfused_time
from trtopt.report.page import engine_layers as page
from trtopt.types import Decision, Engine, LayerTimes, OnnxModel, TypedModel

NAMES = ("conv1", "relu1", "add", "/pool/GlobalAveragePool", "mul")
GRAPH = """<ir_version: 10, opset_import: ["": 19]> g (float[1] x, float[1] p) => (float[1] y, float[1] v) {
    q = QuantizeLinear(x, s, z)\n d = DequantizeLinear(q, s, z)\n c = Relu(d)\n y = Mul(c, d)
    r = QuantizeLinear(p, s, z)\n e = DequantizeLinear(r, s, z)\n v = Add(e, c) }"""
NODES = ("x/QuantizeLinear", "x/DequantizeLinear", "conv1", "mul", "p/QuantizeLinear", "p/DequantizeLinear", "add")


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> TypedModel:
    path = tmp_path_factory.mktemp("typed") / "typed.onnx"
    proto = onnx.parser.parse_model(GRAPH)
    for node, name in zip(proto.graph.node, NODES, strict=True):
        node.name = name
    onnx.save(proto, path)
    return TypedModel(
        onnx=OnnxModel(path=path, digest="d", opset=19, inputs=(), outputs=()),
        precision="int8",
        rest="fp16",
        decisions=tuple(Decision(node=name, op="Conv", precision="int8", reason="") for name in NAMES),
    )


def layer(name: str, kind: str, datatype: str = "Row major Int8 format") -> dict[str, object]:
    return {"Name": name, "LayerType": kind, "Inputs": [{"Format/Datatype": datatype}], "TacticName": "t"}


# Names and types as the inspector of TensorRT 8.5 and 8.6 writes them.
LAYERS = [
    layer("x/QuantizeLinear_quantize_scale_node", "Scale", "Row major linear FP32"),
    layer("conv1.weight + w/DequantizeLinear_dequantize_scale_node + conv1 + relu1", "CaskConvolution"),
    layer("Reformatting CopyNode for Input Tensor 0 to add", "Reformat"),
    layer("add", "ElementWise", "Channel major FP16 format"),
    layer("p/DequantizeLinear_dequantize_scale_node", "Scale"),
    layer("/pool/GlobalAveragePool", "CaskPooling"),
    layer("PWN(mul)", "PointWiseV2", "N/A due to dynamic shapes"),
]


def test_each_layer_has_its_nodes_its_precision_and_what_it_is(typed: TypedModel) -> None:
    found = engine_layers(LAYERS, typed)
    assert [each.apart for each in found] == ["Q", "", "reformat", "pointwise", "DQ", "", "pointwise"]
    assert [each.nodes for each in found] == [
        ("conv1", "mul"),
        ("conv1", "relu1"),
        ("add",),
        ("add",),
        ("add",),
        ("/pool/GlobalAveragePool",),
        ("mul",),
    ]
    assert [each.precision for each in found] == ["fp32", "int8", "int8", "fp16", "int8", "int8", "unknown"]


def test_what_did_not_fuse_is_counted(typed: TypedModel) -> None:
    found = engine_layers(LAYERS, typed)
    assert unfused(found) == "not fused: 1 reformat layer, 1 Q layer, 1 DQ layer, 2 pointwise layers, of 7 layers"
    assert unfused(found[1:2]) == ""
    assert unfused(()) == ""


def test_the_time_of_what_did_not_fuse_is_a_share_of_all_layers(typed: TypedModel) -> None:
    found = engine_layers(LAYERS, typed)
    times = LayerTimes(batch=32, ms={layer.name: 2.0 if layer.apart == "reformat" else 1.0 for layer in found})
    assert unfused_time(found, times) == (
        "layers that did not fuse take 75.0 % of the time of all layers at batch 32: "
        "reformat 25.0 %, Q 12.5 %, DQ 12.5 %, pointwise 25.0 %"
    )
    none = "layers timed at batch 32; none that did not fuse takes time"
    assert unfused_time(found[1:2], times) == none
    assert unfused_time(found, LayerTimes(batch=1, ms={})) == none.replace("32", "1")


@pytest.mark.parametrize("name", ["QuantizeLinear_7", "a/QuantizeLinear"])
def test_a_q_is_not_taken_for_a_dq(typed: TypedModel, name: str) -> None:
    assert engine_layers([layer(name, "Scale")], typed)[0].apart == "Q"


def test_the_table_has_a_row_per_layer(typed: TypedModel) -> None:
    engine = Engine(
        path=typed.onnx.path,
        digest="",
        backend="tensorrt",
        builder="b",
        device="d",
        size_bytes=1,
        layers=engine_layers(LAYERS, typed),
    )
    table = page.table(engine, None)
    assert len(table.rows) == len(LAYERS)
    assert all(len(row) == len(table.head) for row in table.rows)
    assert table.rows[2][table.head.index("not fused")] == "reformat"
    assert "ms" not in table.head
    timed = page.table(engine, LayerTimes(batch=8, ms={"add": 0.25, "PWN(mul)": 0.75}))
    assert "at batch 8, the slowest first" in timed.title
    assert timed.rows[0][0] == "PWN(mul)"
    shown = {row[0]: row[timed.head.index("ms") : timed.head.index("share") + 1] for row in timed.rows}
    assert shown["add"] == ("0.250", "25.0 %")
    assert shown["/pool/GlobalAveragePool"] == ("0.000", "0.0 %")
