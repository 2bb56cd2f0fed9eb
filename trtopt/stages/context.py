"""The context that every stage receives, and the versions of what is installed on the machine.

Touches: reads which packages are installed.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Any

from trtopt.events import Emit
from trtopt.requires import versions
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


def environment() -> dict[str, str]:
    """Return the environment that a report records: operating system, Python, and the versions of packages."""
    packages = ("trtopt", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx")
    return {"platform": platform.platform(), "python": platform.python_version(), **versions(*packages)}
