"""Recognition of archives that may contain a model, by their magic numbers, and which member to unpack.

Touches: reads the file's first bytes, and the member names of a zip or tar archive; unpacks nothing.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

# (offset, magic number, name)
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
_MAX_NAMES = 3  # named in an error message
_MAX_MEMBERS = 10_000  # listed of a tar archive, which must be read from the start to the end


def container(path: Path) -> tuple[str, str]:
    """Return the kind of container (`a zip archive`) and the suggested fix, or two empty strings for any other file."""
    with path.open("rb") as stream:
        head = stream.read(300)
    container_name = next((name for offset, magic, name in _MAGICS if head[offset:].startswith(magic)), "")
    if not container_name:
        return "", ""
    if container_name.startswith("an HDF5"):
        return container_name, "If it is a Keras model, name it .h5"
    members = _model_members(path, container_name)
    if not members:
        return container_name, "Unpack it and give the .onnx file inside"
    more = f" (and {len(members) - _MAX_NAMES} more)" if len(members) > _MAX_NAMES else ""
    return container_name, f"Unpack it and give {' or '.join(members[:_MAX_NAMES])}{more}"


def _model_members(path: Path, container_name: str) -> list[str]:
    """Return the names of the models in a zip or tar archive; an empty list if it cannot be listed."""
    try:
        if container_name.endswith("zip archive"):
            with zipfile.ZipFile(path) as archive:
                return _select_models(archive.namelist())
        if container_name.endswith("tar archive"):
            with tarfile.open(path) as tar:
                return _select_models(member.name for _, member in zip(range(_MAX_MEMBERS), tar, strict=False))
    except (OSError, zipfile.BadZipFile, tarfile.TarError, ValueError, NotImplementedError):
        # Truncated or encrypted: naming the container is all the help there is.
        return []
    return []


def _select_models(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(_MODELS)]
