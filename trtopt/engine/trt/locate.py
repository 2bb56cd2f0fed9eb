"""Search for a usable TensorRT package: `tensorrt`, else `tensorrt_rtx`, with the reason why one is not usable.

Touches: imports the packages.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.engine.cuda.driver import has_gpu
from trtopt.engine.trt.versions import MINIMUM, RTX, Abilities, abilities, parsed
from trtopt.errors import EnvironmentUnableError, UsageError
from trtopt.requires import install

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """TensorRT package that can be imported here: module, package name, version, and folder."""

    module: Any
    name: str
    version: str
    origin: Path

    @property
    def title(self) -> str:
        """Product name and version, as shown in reports."""
        return f"{'TensorRT-RTX' if self.name == RTX else 'TensorRT'} {self.version}"

    @property
    def can(self) -> Abilities:
        """Abilities of this version."""
        return abilities(self.name, self.version)


def find(name: str | None = None) -> TensorRT:
    """Return the package `name`, or by default the first one that is usable here.

    TensorRT needs a GPU for everything. On a machine without one, TensorRT for RTX comes first.

    Raises:
        UsageError: `name` is not a supported TensorRT package.
        EnvironmentUnableError: no package is usable; the message gives the reason for each.
    """
    if name is not None and name not in MINIMUM:
        raise UsageError(f"unknown TensorRT package {name!r}", fix=f"Choose {' or '.join(MINIMUM)}")
    reasons = []
    order = sorted(MINIMUM, key=lambda package: package != RTX) if name is None and not has_gpu() else MINIMUM
    for candidate in [name] if name else order:
        result = load(candidate)
        if isinstance(result, TensorRT):
            _LOGGER.debug("%s from %s", result.title, result.origin)
            return result
        _LOGGER.debug("%s %s", candidate, result)
        reasons.append(f"{candidate} {result}")
    if name is None:
        raise EnvironmentUnableError(
            "TensorRT does not work here",
            why="; ".join(reasons),
            fix=f"Install TensorRT for RTX, which builds without a GPU: {install(RTX)}",
        )
    raise EnvironmentUnableError(
        f"{name} does not work here",
        why="; ".join(reasons),
        fix=f"Omit --tensorrt, or install it: {install(name)}",
    )


def load(name: str) -> TensorRT | str:
    """Import a TensorRT package and return it, or the reason why it is not usable, as the end of a sentence."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "is not installed" if error.name == name else f"lacks its module {error.name}"
    except Exception as error:  # noqa: BLE001 - a broken installation can raise anything, and is skipped
        return f"cannot be imported: {' '.join(str(error).split()) or type(error).__name__}"
    version, file = str(getattr(module, "__version__", "")), getattr(module, "__file__", None)
    # Placeholder packages, and any folder named "tensorrt" on the path, import without an error.
    if not version or not file or not hasattr(module, "Builder") or not hasattr(module, "OnnxParser"):
        return f"is a stub without a builder ({file or 'a folder of that name'})"
    oldest = MINIMUM[name]
    if parsed(version) < oldest:
        return f"{version} is too old: {'.'.join(map(str, oldest))} or later is required"
    return TensorRT(module=module, name=name, version=version, origin=Path(file).parent)
