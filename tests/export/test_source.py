"""Identification of a source by its form alone, without importing a framework."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from trtopt.errors import ModelError
from trtopt.export.source import digest, identify


@pytest.mark.parametrize(
    ("name", "kind", "framework"),
    [
        ("a.onnx", "onnx", ""),
        ("a.bin", "onnx", ""),
        ("a.pt2", "pt2", "pytorch"),
        ("a.keras", "keras", "tensorflow"),
        ("a.h5", "keras", "tensorflow"),
        ("a.HDF5", "keras", "tensorflow"),
    ],
)
def test_a_file_is_identified_by_its_suffix(name: str, kind: str, framework: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    source = identify(str(path))
    assert (source.kind, source.framework, source.name) == (kind, framework, "a")


def test_a_reference_is_a_factory_unless_a_file_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (identify("package.module:make").kind, identify("package.module:make").name) == ("factory", "make")
    Path("model:make").write_bytes(b"x")
    assert identify("model:make").kind == "onnx"


def test_a_folder_with_saved_model_pb_is_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    assert (identify(str(tmp_path)).kind, identify(str(tmp_path)).name) == ("saved_model", tmp_path.name)


@pytest.mark.parametrize("name", ["", "absent.onnx", "not a reference:make"])
def test_a_missing_source_is_rejected_with_the_forms_a_source_may_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"saved_model.pb|does not exist") as caught:
        identify(str(tmp_path / name))
    assert "package.module:factory" in str(caught.value)


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return path


def test_the_only_model_in_a_folder_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match=r"is a folder without a model.*Did you mean .*model\.onnx\?"):
        identify(str(tmp_path))


def test_the_graph_of_a_saved_model_is_refused_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ModelError, match=rf"saved_model\.pb is a part of a SavedModel. Give its folder, {tmp_path}$"):
        identify(str(tmp_path / "saved_model.pb"))


def test_python_code_is_refused_with_the_form_of_a_factory(tmp_path: Path) -> None:
    (tmp_path / "nets.py").touch()
    with pytest.raises(ModelError, match=r"nets\.py is Python code, not a model.*nets:FUNCTION"):
        identify(str(tmp_path / "nets.py"))


def test_torchscript_is_distinguished_from_weights_without_unpickling(tmp_path: Path) -> None:
    assert identify(str(archive(tmp_path / "a.pt", "a/constants.pkl", "a/data.pkl"))).kind == "torchscript"
    with pytest.raises(ModelError, match=r"contains weights or a pickled module, not a program.*--weights"):
        identify(str(archive(tmp_path / "w.pt", "w/data.pkl")))
    (tmp_path / "old.pth").write_bytes(b"\x80\x02 an old pickle")
    with pytest.raises(ModelError, match=r"old.pth is not a TorchScript file"):
        identify(str(tmp_path / "old.pth"))


def test_the_digest_covers_the_name_and_content_of_every_file_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "variables").mkdir()
    weights = tmp_path / "variables" / "data"
    weights.write_bytes(b"1")
    source = identify(str(tmp_path))
    first = digest(source)
    assert digest(source) == first
    weights.write_bytes(b"2")
    second = digest(source)
    weights.rename(weights.with_name("other"))
    assert len({first, second, digest(source)}) == 3


def test_onnx_sources_and_help_import_neither_torch_nor_tensorflow(conv_net: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from trtopt.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as leave: assert not leave.code, leave.code\n"
        "imported = {'torch', 'tensorflow', 'keras', 'tf2onnx'} & set(sys.modules)\n"
        "assert not imported, imported"
    )
    convert = ["convert", str(conv_net), "-p", "fp16", "--no-compare", "-o", str(tmp_path / "run")]
    for arguments in (["--help"], ["export", "--help"], ["convert", "--help"], convert):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
