"""Reading of ONNX files as untrusted input."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from trtopt.errors import ModelError
from trtopt.graph.file import describe, digest, external_files, load_ir, load_proto
from trtopt.types import TensorSpec

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
{ y = MatMul(x, w) }"""


def proto(text: str = MODEL) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(folder: Path, **entries: str) -> Path:
    """Write the model with `w` in external data described by `entries`; `w.bin` contains its 64 bytes."""
    model = proto()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    return write(folder / "model.onnx", model)


def rejection(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        describe(path)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_code == 2
    return line


def zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.onnx", data)
    return stream.getvalue()


def test_describes_inputs_outputs_and_opset(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", proto())
    model = describe(path, ("a note",))
    assert model.path == path
    assert model.opset == 17
    assert model.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
    assert model.outputs == (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),)
    assert model.notes == ("a note",)


def test_leaves_out_initializers_that_are_listed_as_inputs(tmp_path: Path) -> None:
    model = proto()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    assert [spec.name for spec in describe(write(tmp_path / "m.onnx", model)).inputs] == ["x"]


@pytest.mark.parametrize(
    ("dim", "shown"),
    [({"dim_value": -1}, "?"), ({"dim_value": 0}, "?"), ({}, "?"), ({"dim_param": "n"}, "n"), ({"dim_value": 3}, 3)],
)
def test_describes_dynamic_dimensions_by_name_or_as_a_question_mark(
    tmp_path: Path, dim: dict[str, int | str], shown: int | str
) -> None:
    model = proto()
    model.graph.input[0].type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(**dim))
    assert describe(write(tmp_path / "m.onnx", model)).inputs[0].shape == (shown, 4)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16"), (TensorProto.DOUBLE, "float64"),
     (TensorProto.INT64, "int64"), (TensorProto.BOOL, "bool"), (TensorProto.UINT8, "uint8")],
)  # fmt: skip
def test_names_types_as_numpy_does(tmp_path: Path, dtype: int, name: str) -> None:
    model = proto()
    model.graph.input.append(onnx.helper.make_tensor_value_info("other", dtype, [1]))
    assert describe(write(tmp_path / "m.onnx", model)).inputs[1].dtype == name


def test_the_default_opset_is_1(tmp_path: Path) -> None:
    model = proto()
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("custom", 5))
    assert describe(write(tmp_path / "m.onnx", model)).opset == 1


def test_rejects_an_input_without_a_shape(tmp_path: Path) -> None:
    model = proto()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert "input x" in (line := rejection(write(tmp_path / "m.onnx", model)))
    assert "no shape" in line


def test_rejects_an_output_that_is_not_a_tensor(tmp_path: Path) -> None:
    model = proto('<ir_version: 8, opset_import: ["": 17]> g (float[6, 2] x) => (seq(float[1, 2]) y)'
                  "{ y = SplitToSequence(x) }")  # fmt: skip
    assert "is a sequence" in rejection(write(tmp_path / "m.onnx", model))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"", "no graph"),
        (lambda data: b"\x00\xff garbage \x80" * 40, "not an ONNX model"),
        (lambda data: data[: len(data) // 2], "not an ONNX model, or is truncated"),
        (lambda data: data[:-1], "not an ONNX model, or is truncated"),
        (zipped, "a zip archive"),
        (gzip.compress, "a gzip archive"),
    ],
    ids=["empty", "garbage", "half of it", "one byte short", "zip", "gzip"],
)
def test_rejects_files_that_are_not_models(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(spoil(proto().SerializeToString()))
    assert message in rejection(path)


def test_rejects_paths_that_are_not_files(tmp_path: Path) -> None:
    assert "does not exist" in rejection(tmp_path / "none.onnx")
    assert "is a folder" in rejection(tmp_path)
    assert "cannot be read" in rejection(tmp_path / ("n" * 300))


def test_rejects_a_pipe_instead_of_waiting_on_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    assert "not a regular file" in rejection(tmp_path / "m.onnx")


@pytest.mark.parametrize("limit", [0, 1000])
def test_reads_external_data_in_full_and_maps_it_only_when_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("trtopt.graph.file._MAPPED_BYTES", limit)
    path = external(tmp_path)
    assert external_files(load_proto(path)) == ["w.bin"]
    weight = load_ir(path).graph.initializers["w"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy().ravel(), np.arange(16))
    mapped = any(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert mapped == (limit == 0)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../w.bin", "outside its folder"),
        ("/etc/hostname", "outside its folder"),
        ("", "outside its folder"),
        ("sub/../../w.bin", "outside its folder"),
        ("missing.bin", "missing"),
        ("sub", "missing"),
        ("n" * 300, "cannot exist"),
        ("a\0b", "cannot exist"),
    ],
)
def test_rejects_external_data_elsewhere_or_missing(tmp_path: Path, location: str, message: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(bytes(64))
    assert message in rejection(external(folder, location=location))


def test_rejects_a_link_to_a_file_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    assert "outside its folder" in rejection(external(folder, location="link.bin"))


@pytest.mark.parametrize(
    "entries",
    [{"offset": "4"}, {"length": "60"}, {"length": "68"}, {"offset": "-4"}, {"offset": "64"}, {"offset": "1e9"}],
)
def test_rejects_external_data_that_does_not_contain_the_whole_tensor(tmp_path: Path, entries: dict[str, str]) -> None:
    assert "external data" in rejection(external(tmp_path, **entries))


def test_rejects_a_truncated_external_file(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(63))
    assert "w needs 64 bytes at 0 of w.bin, which has 63" in rejection(path)


def test_rejects_external_data_of_an_unknown_type(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = onnx.load(str(path), load_external_data=False)
    model.graph.initializer[0].data_type = 9999
    assert "wrongly" in rejection(write(path, model))


def test_the_digest_covers_the_model_and_its_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    before = digest(path)
    assert digest(path) == before
    (tmp_path / "w.bin").write_bytes(bytes(64))
    after = digest(path)
    assert after != before
    model = onnx.load(str(path), load_external_data=False)
    model.producer_name = "someone else"
    write(path, model)
    assert digest(path) not in (before, after)
