"""What every stage is given, and what it may ask of the machine.

Touches: reads which packages are installed.
"""

from __future__ import annotations

import contextlib
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from trtopt.events import Emit
from trtopt.store import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every stage is given: the store, where events go, and where onnxruntime runs (`cpu`, `cuda`, `auto`)."""

    store: RunStore
    emit: Emit
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The precision asked for, the type of the unquantized rest, and whether biases are corrected."""

    precision: str
    rest: str
    bias_correction: bool


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages, those that are not installed left out."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def environment() -> dict[str, str]:
    """What a report must say of the machine: operating system, Python, and the versions of what did the work."""
    packages = ("trtopt", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx")
    return {"platform": platform.platform(), "python": platform.python_version(), **versions(*packages)}
