"""Operators that an older parser lacks are written out, and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt.versions import abilities
from trtopt.graph.prepare import prepare
from trtopt.graph.spelled import spell_out
from trtopt.types import ShapeRange

BODIES = {
    "LayerNormalization": "y = LayerNormalization<axis = -1, epsilon = 0.01>(x, s, t)",
    "LayerNormalization of two axes": "y = LayerNormalization<axis = 1>(x, s)",
    "Gelu": "y = Gelu(x)",
    "Gelu by tanh": 'y = Gelu<approximate = "tanh">(x)',
    "Shape of the last": "s1 = Shape<start = -1>(x)\n f = Cast<to = 1>(s1)\n y = Add(x, f)",
    "Shape of the first": "s1 = Shape<end = 1>(x)\n f = Cast<to = 1>(s1)\n y = Add(x, f)",
    "Range by Gather": """shape = Shape(x)\n n = Gather<axis = 0>(shape, zero)\n r = Range(zero, n, one)
        i = Unsqueeze(r, ones)\n f = Cast<to = 1>(i)\n y = Add(x, f)""",
    "Range by Shape": """shape = Shape<start = 0, end = 1>(x)\n n = Squeeze(shape)\n r = Range(zero, n, one)
        i = Unsqueeze(r, ones)\n f = Cast<to = 1>(i)\n y = Add(x, f)""",
    "Range by Slice": """shape = Shape(x)\n part = Slice(shape, zeros, ones)\n n = Squeeze(part)
        r = Range(zero, n, one)
        i = Unsqueeze(r, ones)\n f = Cast<to = 1>(i)\n y = Add(x, f)""",
}
HEAD = """<ir_version: 10, opset_import: ["" : 20]>
m (float[n, 4] x) => (float[n, 4] y) <float[4] s = {1, 2, 3, 4}, float[4] t = {0, 1, 0, 1}, int64 zero = {0},
    int64 one = {1}, int64[1] zeros = {0}, int64[1] ones = {1}> """
PROFILE = (ShapeRange(name="x", min=(1, 4), opt=(2, 4), max=(5, 4)),)


def operators(path: Path) -> set[str]:
    """Return the operators; a Shape of all dimensions is not among them."""
    return {node.op_type for node in onnx.load(path).graph.node if node.op_type != "Shape" or node.attribute}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_an_operator_that_the_parser_lacks_is_written_out(body: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(f"{HEAD} {{ {body} }}"), tmp_path / "m.onnx")
    lacks = abilities("tensorrt", "8.5.3").lacks
    path = prepare(tmp_path / "m.onnx", tmp_path, min_opset=19, profile=PROFILE, lacks=lacks).path
    assert not operators(path) & lacks
    for size in (1, 3, 5):
        feed = {"x": np.random.default_rng(size).normal(size=(size, 4)).astype(np.float32)}
        old, new = (open_runner(each).run(feed)["y"] for each in (tmp_path / "m.onnx", path))
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "f = ReduceMax(x)\n n = Cast<to = 7>(f)\n r = Range(zero, n, one)\n y = Cast<to = 1>(r)",
        "shape = Shape<start = 0, end = 1>(x)\n n = Squeeze(shape)\n r = Range(one, n, one)\n y = Cast<to = 1>(r)",
    ],
)
def test_a_range_that_nothing_bounds_stays(body: str, tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(f"{HEAD.replace('float[n, 4] y', 'float[k] y')} {{ {body} }}"), tmp_path / "m.onnx"
    )
    path = prepare(tmp_path / "m.onnx", tmp_path, min_opset=19, profile=PROFILE, lacks={"Range"}).path
    assert "Range" in operators(path)


def test_a_layer_norm_whose_axes_are_not_known_stays() -> None:
    body = "y = LayerNormalization<axis = 1>(x, s)"
    model = ir.from_proto(onnx.parser.parse_model(f"{HEAD} {{ {body} }}"))
    model.graph.inputs[0].shape = None
    spell_out(model, {"LayerNormalization"}, ())
    assert [node.op_type for node in model.graph] == ["LayerNormalization"]


def test_a_later_parser_lacks_nothing() -> None:
    assert not abilities("tensorrt", "10.3.0").lacks
    assert not abilities("tensorrt_rtx", "1.7.1").lacks
    assert abilities("tensorrt", "8.6.2").lacks == {"Gelu", "Range", "Shape"}
