"""Layers of an engine, from the engine inspector's JSON, and what did not fuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtopt.engine.trt.fusion import engine_layers, unfused
from trtopt.report.page import engine_layers as page
from trtopt.types import Decision, Engine, EngineLayer, OnnxModel, TypedModel

NAMES = ("conv1", "relu1", "add", "/pool/GlobalAveragePool", "mul")
TYPED = TypedModel(
    onnx=OnnxModel(path=Path("typed.onnx"), digest="d", opset=19, inputs=(), outputs=()),
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


def test_each_layer_has_its_nodes_its_precision_and_what_it_is() -> None:
    found = engine_layers(LAYERS, TYPED)
    assert [each.apart for each in found] == ["Q", "", "reformat", "pointwise", "DQ", "", "pointwise"]
    assert [each.nodes for each in found] == [
        (),
        ("conv1", "relu1"),
        ("add",),
        ("add",),
        (),
        ("/pool/GlobalAveragePool",),
        ("mul",),
    ]
    assert [each.precision for each in found] == ["fp32", "int8", "int8", "fp16", "int8", "int8", "unknown"]


def test_what_did_not_fuse_is_counted() -> None:
    found = engine_layers(LAYERS, TYPED)
    assert unfused(found) == "not fused: 1 reformat layer, 1 Q layer, 1 DQ layer, 2 pointwise layers, of 7 layers"
    assert unfused(found[1:2]) == ""
    assert unfused(()) == ""


@pytest.mark.parametrize("name", ["QuantizeLinear_7", "a/QuantizeLinear"])
def test_a_q_is_not_taken_for_a_dq(name: str) -> None:
    assert engine_layers([layer(name, "Scale")], TYPED)[0].apart == "Q"


def test_the_table_has_a_row_per_layer() -> None:
    engine = Engine(
        path=Path("e"),
        digest="",
        backend="tensorrt",
        builder="b",
        device="d",
        size_bytes=1,
        layers=engine_layers(LAYERS, TYPED),
    )
    rows = page.rows(engine)
    assert len(rows) == len(LAYERS)
    assert all(len(row) == len(page.HEAD) for row in rows)
    assert rows[2][-1] == "reformat"
    assert isinstance(engine.layers[0], EngineLayer)
