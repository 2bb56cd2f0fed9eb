"""The context that every stage receives, and the versions of what is installed on the machine.

Touches: reads which packages are installed.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trtopt.events import Emit
from trtopt.store import RunStore
from trtopt.types import Keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The context of a stage.

    Attributes:
        store: the run directory.
        emit: receives events.
        device: where onnxruntime runs: `cpu`, `cuda` or `auto`.
        shared: what several stages of this run need and keep in memory, by digests of the network and the data.
    """

    store: RunStore
    emit: Emit
    device: str
    shared: dict[tuple[str, str], Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The requested precision.

    Attributes:
        precision: the precision.
        rest: the fallback precision, of everything that is not quantized.
        bias_correction: whether biases are corrected.
        keep: the nodes that the user keeps in higher precision.
    """

    precision: str
    rest: str
    bias_correction: bool
    keep: tuple[Keep, ...] = ()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {package: installed for package in packages if (installed := _version(package))}


@functools.cache  # every stage asks, and the metadata of a package takes a millisecond to read
def _version(package: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def environment() -> dict[str, str]:
    """Return the environment that a report records: operating system, Python, and the versions of packages."""
    packages = ("trtopt", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx")
    return {"platform": platform.platform(), "python": platform.python_version(), **versions(*packages)}
