"""What a source is, told from its form: an ONNX file, or what a framework must export first.

    name.onnx (and any other file)   ONNX
    name.pt2                         a torch.export archive
    name.pt, name.pth                TorchScript
    package.module:factory           a function that returns a torch.nn.Module
    a folder with saved_model.pb     a TensorFlow SavedModel
    name.keras, name.h5, name.hdf5   a Keras model

Touches: reads the source, to digest it; imports no framework.
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
    """A source and what it is. `text` is a path, or `module:function` when `kind` is `factory`."""

    kind: Kind
    text: str

    @property
    def framework(self) -> str:
        """The module of `trtopt.export` that exports it (`pytorch` or `tensorflow`); empty for ONNX."""
        return _FRAMEWORKS.get(self.kind, "")

    @property
    def name(self) -> str:
        """A short name for files and folders that are made from it."""
        if self.kind == "factory":
            return self.text.rpartition(":")[2]
        path = Path(self.text)
        return path.resolve().name if self.kind == "saved_model" else path.stem


def identify(text: str) -> Source:
    """Return what `text` stands for.

    Raises:
        ModelError: nothing is there, or it is a folder without a SavedModel in it.
    """
    path = Path(text)
    if path.is_dir():
        if not (path / SAVED_MODEL).is_file():
            raise ModelError(f"{text} is a folder without a model", why=f"it holds no {SAVED_MODEL}", fix=KINDS)
        return Source(kind="saved_model", text=text)
    if _FACTORY.fullmatch(text) and not path.exists():
        return Source(kind="factory", text=text)
    if not path.exists():
        raise ModelError(f"{text} does not exist", fix=KINDS)
    kind = _SUFFIXES.get(path.suffix.lower(), "onnx")
    if kind == "torchscript":
        _check_torchscript(path)
    return Source(kind=kind, text=text)


def digest(source: Source) -> str:
    """SHA-256 (hex) of all that the source's files hold; of the text alone for a factory, whose code may do anything.

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
    """Tell TorchScript from what else is called .pt, by the names in the archive: nothing is unpickled."""
    fix = "Give a function that builds the module, package.module:factory, and this file with --weights"
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path} is no TorchScript file, or is truncated", why=str(error), fix=fix) from error
    if "constants.pkl" not in names:
        raise ModelError(
            f"{path} is no TorchScript file",
            why="it holds weights, or a pickled module, and no program"
            if "data.pkl" in names
            else "it holds no program",
            fix=fix,
        )
