"""Engines, and the nodes that a backend does not support.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trtopt.types.precision import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A node that TensorRT does not support: its name and operator, and TensorRT's error code and message."""

    node: str
    op: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Answer of a backend's parser, `by`, about a model. `rejections` is empty if it supports every node.

    Otherwise `what`, `why` and `fix` are the error to raise.
    """

    by: str
    rejections: tuple[Rejection, ...]
    what: str = ""
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The deployable result: a serialized TensorRT engine (`backend` tensorrt), or the typed ONNX file (onnxruntime).

    `builder` is the library and its version, and `device` the device that the engine was built for. `audit` is the
    number of layers by precision, *read back* after the build, and `audited` the source that it was read from.
    `raised` are decisions that differ from the typed graph's: nodes that had to be built in higher precision.
    """

    path: Path
    digest: str
    backend: str
    builder: str
    device: str
    size_bytes: int
    audit: Mapping[str, int] = field(default_factory=dict)
    audited: str = ""
    raised: tuple[Decision, ...] = ()
