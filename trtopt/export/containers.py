"""Containers that a model may be packed in: what they are, and what to unpack.

Touches: reads the file's first bytes, and the names in a zip or tar archive; unpacks nothing.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

_MAGICS = (
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf", "a 7-zip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (0, b"Rar!", "a rar archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
)
_MODELS = (".onnx", ".pt2", ".pt", ".keras", ".h5", "saved_model.pb")
_SHOWN = 3
_MOST = 10_000


def container(path: Path) -> tuple[str, str]:
    """Return what the file is and what to do about it; both empty when it is no container."""
    with path.open("rb") as stream:
        head = stream.read(300)
    what = next((name for place, magic, name in _MAGICS if head[place:].startswith(magic)), "")
    if not what:
        return "", ""
    if what.startswith("an HDF5"):
        return what, "If it is a Keras model, name it .h5"
    names = _models(path, what)
    if not names:
        return what, "Unpack it and give the .onnx file inside"
    more = f" (and {len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return what, f"Unpack it and give {' or '.join(names[:_SHOWN])}{more}"


def _models(path: Path, what: str) -> list[str]:
    try:
        if what.endswith("zip archive"):
            with zipfile.ZipFile(path) as archive:
                return _pick(archive.namelist())
        if what.endswith("tar archive"):
            with tarfile.open(path) as tar:
                return _pick(member.name for _, member in zip(range(_MOST), tar, strict=False))
    except (OSError, zipfile.BadZipFile, tarfile.TarError, ValueError, NotImplementedError):
        return []
    return []


def _pick(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(_MODELS)]
