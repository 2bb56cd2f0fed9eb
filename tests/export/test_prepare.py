"""Preparation changes the graph of a model and leaves its results as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from trtopt.errors import ModelError
from trtopt.graph import prepare as module
from trtopt.graph.file import describe, external_files, load_proto
from trtopt.graph.prepare import check_types, prepare, save
from trtopt.types import OnnxModel, ShapeRange

CONV_BN = """<ir_version: 8, opset_import: ["": {opset}]>
g (float[n, 3, 8, 8] x) => (float[n, 4] y) {{
  c = Conv<pads=[1,1,1,1]>(x, w)
  b = BatchNormalization(c, gamma, beta, mean, var)
  i = Identity(b)
  r = Relu(i)
  m = GlobalAveragePool(r)
  y = Flatten(m)
}}"""
MATMUL_MASK = """<ir_version: 8, opset_import: ["": 12]>
g (int64[n, 6] ids) => (float[n, 1, 5] y) {
  e = Gather(table, ids)
  one = Constant<value = float {1.0}>()
  s = Mul(e, one)
  p = MatMul(s, w)
  q = Softmax<axis=-1>(p)
  y = ReduceSum<axes=[1], keepdims=1>(q)
}"""
IF = """<ir_version: 8, opset_import: ["": 11]>
g (float[n, 4] x, bool c) => (float[n, 4] y) {
  t = MatMul(x, w)
  y = If(c)<
    then_branch = yes () => (float[n, 4] a) { a = Neg(t) },
    else_branch = no () => (float[n, 4] b) { b = Abs(t) }>
}"""
TWO_OUTPUTS = """<ir_version: 8, opset_import: ["": 13]>
g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z, float[2] k) {
  y = MatMul(x, w)
  z = Identity(y)
  k = Constant<value = float[2] {1, 2}>()
}"""
WEIGHTS = {
    CONV_BN: {"w": (4, 3, 3, 3), "gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)},
    MATMUL_MASK: {"table": (10, 8), "w": (8, 5)},
    IF: {"w": (4, 4)},
    TWO_OUTPUTS: {"w": (4, 4)},
}


def make(template: str, opset: int = 17) -> onnx.ModelProto:
    model = onnx.parser.parse_model(template.format(opset=opset) if template is CONV_BN else template)
    rng = np.random.default_rng(7)
    for name, shape in WEIGHTS.get(template, {}).items():
        array = rng.uniform(0.5, 1.5, shape) if name == "var" else rng.normal(size=shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


def prepared(
    folder: Path, model: onnx.ModelProto, *, opset: int = 19, profile: Sequence[ShapeRange] = ()
) -> tuple[Path, OnnxModel]:
    source, out = folder / "source.onnx", folder / "out"
    onnx.save(model, source)
    out.mkdir(exist_ok=True)
    return source, prepare(source, out, min_opset=opset, profile=profile)


def outputs(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def images(n: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)}


def rows(n: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)}


def tokens(n: int) -> dict[str, np.ndarray]:
    return {"ids": np.random.default_rng(n).integers(0, 10, (n, 6))}


def branch(n: int) -> dict[str, np.ndarray]:
    return {**rows(n), "c": np.array(n > 1)}


@pytest.mark.parametrize(
    ("model", "feed"),
    [
        (make(CONV_BN, 7), images),
        (make(CONV_BN, 11), images),
        (make(CONV_BN, 17), images),
        (make(MATMUL_MASK), tokens),
        (make(IF), branch),
        (make(TWO_OUTPUTS), rows),
    ],
    ids=["conv-7", "conv-11", "conv-17", "tokens-12", "if-11", "two-outputs-13"],
)
@pytest.mark.parametrize("opset", [19, 22])
def test_keeps_the_results_of_the_model(
    tmp_path: Path, model: onnx.ModelProto, feed: Callable[[int], dict[str, np.ndarray]], opset: int
) -> None:
    source, ready = prepared(tmp_path, model, opset=opset)
    assert ready.opset == opset
    check_types(ready.path)
    before = describe(source)
    assert [spec.name for spec in ready.inputs] == [spec.name for spec in before.inputs]
    assert [spec.name for spec in ready.outputs] == [spec.name for spec in before.outputs]
    for n in (1, 3):  # the batch stays dynamic
        for want, got in zip(outputs(source, feed(n)), outputs(ready.path, feed(n)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_folds_batch_norms_and_drops_identities(tmp_path: Path) -> None:
    _, ready = prepared(tmp_path, make(CONV_BN))
    assert [node.op_type for node in load_proto(ready.path).graph.node] == [
        "Conv", "Relu", "GlobalAveragePool", "Flatten",
    ]  # fmt: skip
    assert ready.notes[0] == "6 nodes become 4"


def test_leaves_no_constant_node_behind_not_even_those_of_the_opset_conversion(tmp_path: Path) -> None:
    _, ready = prepared(tmp_path, make(MATMUL_MASK))
    nodes = [node.op_type for node in load_proto(ready.path).graph.node]
    assert nodes == ["Gather", "MatMul", "Softmax", "ReduceSum"]  # ReduceSum's axes became an input in opset 13


def test_notes_the_raised_opset_and_never_lowers_one(tmp_path: Path) -> None:
    _, raised = prepared(tmp_path, make(CONV_BN, 11))
    assert "opset 11 raised to 19" in raised.notes
    _, kept = prepared(tmp_path, make(CONV_BN, 22))
    assert kept.opset == 22
    assert not any("opset" in note for note in kept.notes)
    _, new = prepared(tmp_path, make(CONV_BN, 24))
    assert new.opset == 24
    assert any("newer than TensorRT 10.12 supports" in note for note in new.notes)


def test_models_whose_shapes_onnxslim_cannot_infer_are_optimized(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 5]> g (float[n, 2] x, float[2, 2] w) => (float[n, 2] y)'
        "<float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    )
    _, ready = prepared(tmp_path, model)
    assert [spec.name for spec in ready.inputs] == ["x"]
    x = np.ones((3, 2), np.float32)
    assert np.array_equal(outputs(ready.path, {"x": x})[0], x @ np.array([[1, 2], [3, 4]], np.float32))


def test_an_uneven_split_keeps_its_sizes(tmp_path: Path) -> None:
    """onnxslim takes 8 for the first size, and folds it into constants."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 19]>
        g (float[17, 4] x) => (float[9, 4] y, float[8, 4] z) {
          a, b = Split<axis=0, num_outputs=2>(x)
          s = Shape(a)
          e = Expand(one, s)
          y = Mul(a, e)
          z = Neg(b)
        }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "one"))
    source, ready = prepared(tmp_path, model)
    x = {"x": np.arange(68, dtype=np.float32).reshape(17, 4)}
    for want, got in zip(outputs(source, x), outputs(ready.path, x), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_branch_that_onnxslim_breaks_is_optimized_without_it(tmp_path: Path) -> None:
    """onnxslim inlines a branch that is always taken, and loses a result that the branch itself reads."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[2] x) => (float[2] y, float[2] z) <bool yes = {1}> {
          y, z = If(yes)<
            then_branch = t () => (float[2] a, float[2] b) { a = Add(x, x) b = Mul(a, x) },
            else_branch = e () => (float[2] c, float[2] d) { c = Abs(x) d = Neg(x) }>
        }""")
    source, ready = prepared(tmp_path, model)
    assert any("without onnxslim" in note for note in ready.notes)
    feed = {"x": np.array([1, 2], np.float32)}
    for want, got in zip(outputs(source, feed), outputs(ready.path, feed), strict=True):
        np.testing.assert_array_equal(got, want)


def test_freezes_dimensions_whose_minimum_is_their_maximum(tmp_path: Path) -> None:
    fixed = ShapeRange(name="x", min=(2, 3, 8, 8), opt=(2, 3, 8, 8), max=(2, 3, 8, 8))
    _, ready = prepared(tmp_path, make(CONV_BN), profile=[fixed])
    assert ready.inputs[0].shape == (2, 3, 8, 8)
    assert ready.outputs[0].shape == (2, 4)


def test_keeps_dimensions_that_have_a_range(tmp_path: Path) -> None:
    moving = ShapeRange(name="x", min=(1, 3, 8, 8), opt=(2, 3, 8, 8), max=(4, 3, 8, 8))
    _, ready = prepared(tmp_path, make(CONV_BN), profile=[moving])
    assert ready.inputs[0].shape == ("n", 3, 8, 8)
    assert ready.outputs[0].shape == ("n", 4)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("first", ["x", "z"])
def test_a_frozen_dimension_is_frozen_wherever_its_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, large: bool
) -> None:
    if large:  # onnxslim infers it, but large models are optimized without onnxslim
        monkeypatch.setattr(module, "LARGE_BYTES", 0)
    names = "float[n, 4] x, float[n, 4] z" if first == "x" else "float[n, 4] z, float[n, 4] x"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({names}) => (float[n, 4] y) {{ s = Relu(z)\n y = Add(x, s) }}'
    )
    _, ready = prepared(tmp_path, model, profile=[ShapeRange(name="x", min=(2, 4), opt=(2, 4), max=(2, 4))])
    assert {spec.name: spec.shape for spec in [*ready.inputs, *ready.outputs]} == {
        "x": (2, 4), "z": (2, 4), "y": (2, 4),
    }  # fmt: skip


@pytest.mark.parametrize("dim", [{}, {"dim_value": -1}, {"dim_value": 0}])
def test_names_unnamed_dimensions(tmp_path: Path, dim: dict[str, int]) -> None:
    model = make(CONV_BN)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(**dim))
    _, ready = prepared(tmp_path, model)
    assert ready.inputs[0].shape == ("x_dim0", 3, 8, 8)
    assert isinstance(ready.outputs[0].shape[0], str)
    assert outputs(ready.path, images(3))[0].shape == (3, 4)


def test_every_node_and_tensor_has_a_unique_name(tmp_path: Path) -> None:
    model = make(CONV_BN)
    for node in model.graph.node:
        node.name = "same" if node.op_type in ("Conv", "Relu") else ""
    _, ready = prepared(tmp_path, model)
    graph = load_proto(ready.path).graph
    names = [node.name for node in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    tensors = [name for node in graph.node for name in node.output]
    assert all(tensors)
    assert len(set(tensors)) == len(tensors)


@pytest.mark.parametrize("limit", [0, module.LARGE_BYTES])
def test_drops_doc_strings_that_name_the_exporter_and_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", limit)
    model = make(CONV_BN)
    model.graph.doc_string = model.graph.node[0].doc_string = "File /home/someone/model.py, line 1"
    model.graph.node[0].metadata_props.add(key="trace", value="/home/someone/model.py")
    _, ready = prepared(tmp_path, model)
    assert b"someone" not in ready.path.read_bytes()


def test_infers_the_shapes_of_intermediate_tensors(tmp_path: Path) -> None:
    _, ready = prepared(tmp_path, make(CONV_BN))
    graph = load_proto(ready.path).graph
    with_shape = {value.name for value in [*graph.value_info, *graph.output]}
    assert {name for node in graph.node for name in node.output} <= with_shape


def test_writes_the_same_bytes_every_time(tmp_path: Path) -> None:
    model = make(MATMUL_MASK)
    _, first = prepared(tmp_path, model)
    bytes_of_first = first.path.read_bytes()
    first.path.unlink()
    _, second = prepared(tmp_path, model)
    assert second.path.read_bytes() == bytes_of_first
    assert second.digest == first.digest


@pytest.mark.parametrize("part", ["weights in memory", "weights on disk"])
def test_weights_beyond_a_limit_go_to_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(module, "BETWEEN_STAGES", 100)
    if part == "weights on disk":
        monkeypatch.setattr(module, "LARGE_BYTES", 100)
    model = make(CONV_BN)
    (tmp_path / "source").mkdir()
    onnx.save(model, tmp_path / "source" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    ready = prepare(tmp_path / "source" / "m.onnx", tmp_path, min_opset=19, profile=[])
    assert external_files(load_proto(ready.path)) == ["fp32.onnx.data"]
    assert any("without onnxslim" in note for note in ready.notes) == (part == "weights on disk")
    want = outputs(tmp_path / "source" / "m.onnx", images(2))
    np.testing.assert_allclose(outputs(ready.path, images(2))[0], want[0], rtol=1e-5, atol=1e-6)


def test_external_data_of_the_source_is_copied_into_the_prepared_file(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "m.onnx"
    onnx.save(make(CONV_BN), path, save_as_external_data=True, location="m.data", size_threshold=0)
    want = outputs(path, images(2))
    ready = prepare(path, tmp_path, min_opset=19, profile=[])
    (tmp_path / "source" / "m.data").unlink()
    np.testing.assert_allclose(outputs(ready.path, images(2))[0], want[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Foo(x)", "No Op registered for Foo"),
        ("y = Relu(nowhere)", "nowhere"),
        ("y = Relu(x)\n y = Abs(x)", "single static assignment"),
        ("t = Relu(y)\n y = Abs(t)", "topologically"),
    ],
)
def test_rejects_an_invalid_model_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) {{ {body} }}'
    )
    with pytest.raises(ModelError, match=message) as caught:
        prepared(tmp_path, model)
    assert "\n" not in str(caught.value)
    assert ".." not in str(caught.value)
    assert not (tmp_path / "out" / "fp32.onnx").exists()


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("opset", "body"),
    [(8, 'y = Upsample<mode="{mode}", scales=[1.0, 1.0, 1.5, 1.5]>(x)'), (10, 'y = Resize<mode="{mode}">(x, s)')],
)
def test_old_resizing_keeps_its_sampling_points(tmp_path: Path, opset: int, body: str, mode: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[1, 1, 4, 4] x) => (float[1, 1, 6, 6] y)'
        f"<float[4] s = {{1, 1, 1.5, 1.5}}> {{ {body.format(mode=mode)} }}"
    )
    source, ready = prepared(tmp_path, model)
    x = {"x": np.random.default_rng(0).normal(size=(1, 1, 4, 4)).astype(np.float32)}
    np.testing.assert_allclose(outputs(ready.path, x)[0], outputs(source, x)[0], rtol=1e-6)


def test_an_operator_that_changed_its_meaning_is_rejected_rather_than_converted(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 12]> g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Hardmax(x) }'
    )
    with pytest.raises(ModelError, match="opset 12 cannot be raised to 19: Hardmax changed its meaning in opset 13"):
        prepared(tmp_path, model)


def test_names_the_inputs_that_were_dropped(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[4] x, float[3] unread) => (float[4] y) { y = Relu(x) }'
    )
    _, ready = prepared(tmp_path, model)
    assert "dropped inputs that no output depends on: unread" in ready.notes


def test_check_types_rejects_a_graph_whose_types_do_not_match(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[4, 4] x, float16[4, 4] z) => (float[4, 4] y) '
        "{ y = MatMul(x, z) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx does not pass"):
        check_types(tmp_path / "m.onnx")


def test_save_overwrites(tmp_path: Path) -> None:
    import onnx_ir as ir

    onnx.save(make(CONV_BN), tmp_path / "m.onnx")
    model = ir.load(tmp_path / "m.onnx")
    save(model, tmp_path / "m.onnx")
    assert np.isfinite(outputs(tmp_path / "m.onnx", images(1))[0]).all()
