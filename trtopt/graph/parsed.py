"""Parsed ONNX files, kept so that a file is parsed once, however many stages and sessions need its graph.

Touches: reads the file.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.counts import parses
from trtopt.graph.explicit import make_explicit

if TYPE_CHECKING:
    import onnx

_KEPT_BYTES = 512 << 20
"""Size of the files to keep. Those that have not been used for the longest time are dropped."""
_HASHED_BYTES = 16 << 20
"""Files up to this size are recognized by their content. Larger ones, whose weights are inline, by inode and times."""

_files: OrderedDict[object, _File] = OrderedDict()
"""The parsed files by identity, in the order of their last use."""


@dataclass(frozen=True, slots=True)
class _File:
    """A parsed file, its size in bytes, and whether anything was added to it that it leaves out."""

    proto: onnx.ModelProto
    size: int
    completed: bool


def parse(path: Path) -> onnx.ModelProto:
    """Return the parsed file without its external data, and with what it leaves out (`explicit`).

    The message is shared: `own` returns one that may be changed.

    Raises:
        Exception: of any type, if the file cannot be read or does not parse.
    """
    return _file(path).proto


def is_completed(path: Path) -> bool:
    """Return whether the file leaves out anything that `parse` adds, so that ONNX's checker would reject it.

    Raises:
        Exception: as `parse`.
    """
    return _file(path).completed


def _file(path: Path) -> _File:
    import onnx

    key = _identity(path)
    if key not in _files:
        parses.add()
        proto = onnx.load(str(path), load_external_data=False, format="protobuf")
        _files[key] = _File(proto, path.stat().st_size, make_explicit(proto))
    _files.move_to_end(key)
    while len(_files) > 1 and sum(file.size for file in _files.values()) > _KEPT_BYTES:
        _files.popitem(last=False)
    return _files[key]


def own(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a parsed file, which the caller may change."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _identity(path: Path) -> object:
    """Return what tells the content of a file from that of all others, also after the file was renamed or replaced.

    The times of a small file that was replaced within milliseconds, as in a trial, may be equal.
    """
    status = path.stat()
    if status.st_size <= _HASHED_BYTES:
        return hashlib.sha256(path.read_bytes()).digest()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
