"""The source of a model and its kind, identified by its form: an ONNX file, or a model that a framework must export.

    name.onnx (and any other file)   ONNX
    name.pt2                         a torch.export archive
    name.pt, name.pth                TorchScript
    package.module:factory           a function that returns a torch.nn.Module
    a folder with saved_model.pb     a TensorFlow SavedModel
    name.keras, name.h5, name.hdf5   a Keras model

Touches: reads the source to compute its digest; imports no framework.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtopt.errors import ModelError

Kind = Literal["onnx", "pt2", "torchscript", "factory", "saved_model", "keras"]

KINDS = "Give an .onnx, .pt2, TorchScript .pt, .keras or .h5 file, a SavedModel folder, or package.module:factory"
SAVED_MODEL = "saved_model.pb"

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_SUFFIXES: dict[str, Kind] = {
    ".pt2": "pt2",
    ".pt": "torchscript",
    ".pth": "torchscript",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
}
_FRAMEWORKS: dict[Kind, str] = {
    "pt2": "pytorch",
    "torchscript": "pytorch",
    "factory": "pytorch",
    "saved_model": "tensorflow",
    "keras": "tensorflow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source and its kind. `text` is a path, or `module:function` when `kind` is `factory`."""

    kind: Kind
    text: str

    @property
    def framework(self) -> str:
        """The module of `trtopt.export` that exports the source (`pytorch` or `tensorflow`); empty for ONNX."""
        return _FRAMEWORKS.get(self.kind, "")

    @property
    def name(self) -> str:
        """A short name for the files and folders derived from the source."""
        if self.kind == "factory":
            return self.text.rpartition(":")[2]
        path = Path(self.text)
        return path.resolve().name if self.kind == "saved_model" else path.stem


def identify(text: str) -> Source:
    """Return the source that `text`, a path or `package.module:factory`, refers to.

    Raises:
        ModelError: the path does not exist, is a folder without a SavedModel, or is Python code.
    """
    path = Path(text)
    if path.is_dir():
        if not (path / SAVED_MODEL).is_file():
            inside = sorted(path.glob("*.onnx"))
            fix = f"Did you mean {inside[0]}?" if len(inside) == 1 else KINDS
            raise ModelError(f"{text} is a folder without a model", why=f"it contains no {SAVED_MODEL}", fix=fix)
        return Source(kind="saved_model", text=text)
    # A file may have a colon in its name: an existing file wins.
    if _FACTORY.fullmatch(text) and not path.exists():
        return Source(kind="factory", text=text)
    if not path.exists():
        raise ModelError(f"{text} does not exist", fix=KINDS)
    if path.name == SAVED_MODEL:
        raise ModelError(f"{text} is a part of a SavedModel", fix=f"Give its folder, {path.parent}")
    if path.suffix == ".py":
        fix = f"Name the function in it that returns the network: {'.'.join((*path.parts[:-1], path.stem))}:FUNCTION"
        raise ModelError(f"{text} is Python code, not a model", fix=fix)
    kind = _SUFFIXES.get(path.suffix.lower(), "onnx")
    if kind == "torchscript":
        _check_torchscript(path)
    return Source(kind=kind, text=text)


def digest(source: Source) -> str:
    """Return the SHA-256 (hex) of the source: of its kind, and of the name, size and content of each of its files.

    The digest of a factory covers its reference only, as its code may depend on anything.

    Raises:
        ModelError: a file cannot be read.
    """
    sha = hashlib.sha256(source.kind.encode())
    path = Path(source.text)
    if source.kind == "factory":
        sha.update(source.text.encode())
        return sha.hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            sha.update(f"\0{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    sha.update(chunk)
    except OSError as error:
        raise ModelError(f"{source.text} cannot be read", why=error.strerror or str(error)) from error
    return sha.hexdigest()


def _check_torchscript(path: Path) -> None:
    """Raise ModelError unless the file is TorchScript, by the names in its zip archive; nothing is unpickled.

    `torch.save` writes weights and whole modules under the same suffixes.
    """
    fix = "Give a function that builds the module, package.module:factory, and this file with --weights"
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path} is not a TorchScript file, or is truncated", why=str(error), fix=fix) from error
    # torch.jit.save writes constants.pkl beside data.pkl; torch.save writes data.pkl alone.
    if "constants.pkl" not in names:
        saved_by_torch = "data.pkl" in names
        raise ModelError(
            f"{path} is not a TorchScript file",
            why="it contains weights or a pickled module, not a program" if saved_by_torch else "it has no program",
            fix=fix,
        )
