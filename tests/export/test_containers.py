"""Archives are rejected with an error that names what to unpack from them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trtopt.errors import ModelError
from trtopt.graph.containers import container
from trtopt.graph.file import describe


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def tarred(*names: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_the_models_inside_are_named(pack: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(pack("readme.txt", "net/model.onnx", "net/other.onnx"))
    with pytest.raises(ModelError, match=r"Unpack it and give net/model.onnx or net/other.onnx$"):
        describe(path)


def test_only_the_first_three_models_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(zipped(*(f"{i}.onnx" for i in range(9))))
    assert container(path)[1].endswith("0.onnx or 1.onnx or 2.onnx (and 6 more)")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (zipped(), "an empty zip archive"),
        (zipped("a.onnx")[:40], "a zip archive"),
        (gzip.compress(b"x"), "a gzip archive"),
        (bz2.compress(b"x"), "a bzip2 archive"),
        (lzma.compress(b"x"), "an xz archive"),
        (b"Rar!\x1a\x07", "a rar archive"),
        (b"\x28\xb5\x2f\xfd\x00", "a zstandard archive"),
        (tarred("a.onnx")[:400], "a tar archive"),
    ],
    # The contents have the time in them, and workers of pytest-xdist must agree on the names.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_archives_that_cannot_be_listed_are_still_recognized(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert container(path)[0] == name
    with pytest.raises(ModelError, match=rf"is {name}, not an ONNX model\. Unpack it and give"):
        describe(path)


def test_a_model_and_a_short_file_are_not_containers(conv_net: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    assert container(conv_net) == container(tmp_path / "short") == ("", "")
