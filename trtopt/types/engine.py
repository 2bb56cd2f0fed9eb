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
class TargetFiles:
    """The files for a platform on which the engine is to be built.

    Attributes:
        target: the platform, as in `--target`.
        tensorrt: TensorRT and its version there.
        graph: the ONNX graph in the dialect of that version.
        script: the script that builds the engine on the device.
        cache: the calibration cache; None if the graph holds its scales itself.
    """

    target: str
    tensorrt: str
    graph: Path
    script: Path
    cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """A layer of a built engine, as the engine inspector describes it.

    Attributes:
        name: its name, which lists what was fused into it.
        type: its type.
        precision: the precision that it computes in, or `unknown`.
        tactic: the kernel.
        nodes: the nodes of the typed graph that it computes; of a reformat, those beside it.
        apart: `reformat`, `Q`, `DQ` or `pointwise` if it is nothing but that, and did not fuse; else empty.
    """

    name: str
    type: str
    precision: str
    tactic: str
    nodes: tuple[str, ...] = ()
    apart: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The deployable result: a serialized TensorRT engine (`backend` tensorrt), or the typed ONNX file (onnxruntime).

    `builder` is the library and its version, and `device` the device that the engine was built for. `audit` is the
    number of layers by precision, *read back* after the build, and `audited` the source that it was read from.
    `raised` are decisions that differ from the typed graph's: nodes that had to be built in higher precision.
    `layers` are those of the built engine, where it could be loaded.
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
    layers: tuple[EngineLayer, ...] = ()
