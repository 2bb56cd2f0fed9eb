"""Parsed ONNX files, kept so that a file is parsed once, however many stages and sessions need its graph.

Touches: reads the file.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.counts import parses

if TYPE_CHECKING:
    import onnx

_KEPT_BYTES = 512 << 20
"""Size of the files to keep. Those that have not been used for the longest time are dropped."""
_HASHED_BYTES = 16 << 20
"""Files up to this size are recognized by their content. Larger ones, whose weights are inline, by inode and times."""

_files: OrderedDict[object, tuple[onnx.ModelProto, int]] = OrderedDict()
"""The parsed files with their sizes in bytes, by identity, in the order of their last use."""


def parse(path: Path) -> onnx.ModelProto:
    """Return the parsed file without its external data. The message is shared: `own` returns one that may be changed.

    Raises:
        Exception: of any type, if the file cannot be read or does not parse.
    """
    import onnx

    key = _identity(path)
    if key not in _files:
        parses.add()
        _files[key] = (onnx.load(str(path), load_external_data=False, format="protobuf"), path.stat().st_size)
    _files.move_to_end(key)
    while len(_files) > 1 and sum(size for _, size in _files.values()) > _KEPT_BYTES:
        _files.popitem(last=False)
    return _files[key][0]


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
