"""Which TensorRT there is: `tensorrt`, else `tensorrt_rtx`, and why one that is installed is of no use.

Touches: imports the packages.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.errors import EnvironmentUnableError, UsageError

RTX = "tensorrt_rtx"
MINIMUM = {"tensorrt": (10, 12), RTX: (1, 3)}
"""The packages, in the order in which they are looked for, and the oldest version that builds typed networks."""

RTX_DEVICES = "portable: compute capability 8.0, 8.6, 8.9, 12.0 and later"
"""What an engine of TensorRT for RTX runs on by default (NVIDIA, "CPU-Only AOT and TensorRT-RTX Engines")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """A TensorRT that can be imported here: the module, its name, its version, and the folder it came from."""

    module: Any
    name: str
    version: str
    origin: Path

    @property
    def title(self) -> str:
        """The product and its version, as reports name them."""
        return f"{'TensorRT-RTX' if self.name == RTX else 'TensorRT'} {self.version}"


def find(name: str | None = None) -> TensorRT:
    """Return the first TensorRT that works here, or the one called `name`.

    Raises:
        UsageError: `name` is no TensorRT package.
        EnvironmentUnableError: there is none; the message says why for each.
    """
    if name is not None and name not in MINIMUM:
        raise UsageError(f"unknown TensorRT package {name!r}", fix=f"Choose {' or '.join(MINIMUM)}")
    reasons = []
    for candidate in [name] if name else MINIMUM:
        found = load(candidate)
        if isinstance(found, TensorRT):
            return found
        reasons.append(f"{candidate} {found}")
    extra = {"tensorrt": "tensorrt"}.get(name or "", "rtx")
    raise EnvironmentUnableError(
        f"{name or 'TensorRT'} does not work here" if name else "no TensorRT works here",
        why="; ".join(reasons),
        fix=f"Leave --tensorrt out, or install it: pip install 'trtopt[{extra}]'"
        if name
        else "Install TensorRT for RTX, which builds without a GPU: pip install 'trtopt[rtx]'",
    )


def load(name: str) -> TensorRT | str:
    """Import one TensorRT package; return it, or the reason why it is of no use, as the end of a sentence."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "is not installed" if error.name == name else f"lacks its module {error.name}"
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways of its own, and is skipped
        return f"does not import: {' '.join(str(error).split()) or type(error).__name__}"
    version, file = str(getattr(module, "__version__", "")), getattr(module, "__file__", None)
    if not version or not file or not hasattr(module, "Builder") or not hasattr(module, "OnnxParser"):
        return f"is a stub without a builder ({file or 'a folder of that name'})"
    oldest = MINIMUM[name]
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < oldest:
        return f"{version} is too old: {'.'.join(map(str, oldest))} is the first that will do"
    return TensorRT(module=module, name=name, version=version, origin=Path(file).parent)
