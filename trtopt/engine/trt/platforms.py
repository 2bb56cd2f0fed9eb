"""The platforms of `--target`, each with the TensorRT that it has.

The versions are those of NVIDIA's release notes, as listed in docs/targets.md; none was read from a device by trtopt's
developers.

Touches: nothing.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass

from trtopt.engine.trt.versions import PRODUCT, Abilities, abilities
from trtopt.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A platform: its name, its version of TensorRT, and whether its DLA is meant instead of its GPU."""

    name: str
    version: str
    dla: bool = False

    @property
    def title(self) -> str:
        """TensorRT and its version, as in reports."""
        return f"TensorRT {self.version}" + (" on the DLA" if self.dla else "")

    @property
    def can(self) -> Abilities:
        """Abilities of that TensorRT."""
        return abilities(PRODUCT, self.version)

    @property
    def has_bindings(self) -> bool:
        """Whether its TensorRT has bindings for a Python that trtopt runs on: those of JetPack 5 are for Python 3.8."""
        return not self.name.startswith("jetpack-5")

    @property
    def cache_version(self) -> int:
        """Number in the first line of a calibration cache, which TensorRT requires to be its own."""
        major, minor, patch = (*map(int, self.version.split(".")), 0, 0)[:3]
        return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


IMAGES = {"24.05": "10.0", "24.08": "10.3", "25.03": "10.9", "25.11": "10.14", "26.03": "10.16"}
"""TensorRT of Triton's images `tritonserver:NAME-py3`, as precise as it is known; none was verified in the image.

NVIDIA's table (docs/introduction/compatibility.md in the server's repository) is about the `trtllm-python-py3` images.
"""

_PLATFORMS = {
    "jetpack-5": "8.5.2",
    "jetpack-6.0": "8.6.2",
    "jetpack-6": "10.3.0",
    "jetpack-7": "10.13.0",
    "jetpack-7.2": "10.16.0",
    "deepstream-8": "10.9.0",
    "deepstream-9": "10.14.0",
    **{f"triton-{release}": version for release, version in IMAGES.items()},
    "triton-26.07": IMAGES["26.03"],  # at least that: the graph for it is read by later ones, too
}
_ALIASES = {f"jetpack-{release}": f"jetpack-{release[0]}" for release in ("5.1", "6.1", "6.2", "7.0", "7.1")}
"""Releases with the TensorRT of a platform."""

_BF16_OPSET = 22
_DLA = {"jetpack-5-dla": "8.5.2", "jetpack-6-dla": "10.3.0"}
_VERSIONS = ("8.5", "8.6", *(f"10.{minor}" for minor in range(17)), *(f"11.{minor}" for minor in range(6)))


@functools.cache
def platforms() -> Mapping[str, Platform]:
    """Return every platform by its name."""
    named = [Platform(name=name, version=version) for name, version in _PLATFORMS.items()]
    named += [Platform(name=name, version=version, dla=True) for name, version in _DLA.items()]
    named += [Platform(name=f"trt-{version}", version=version) for version in _VERSIONS]
    return {platform.name: platform for platform in named}


def platform(name: str) -> Platform:
    """Return the platform of that name.

    Raises:
        UsageError: the name is unknown; the message suggests the closest ones.
    """
    known = platforms()
    name = _ALIASES.get(name.lower(), name)
    if name not in known:
        # `jetpack-6.2` is nearer to `jetpack-7.2` by its letters, but is a `jetpack-6`.
        longer = [each for each in known if name.lower().startswith(f"{each}.")]
        near = longer or difflib.get_close_matches(name.lower(), known, 3)
        fix = f"Did you mean {' or '.join(near)}?" if near else f"Choose one of {', '.join(_PLATFORMS)}, or trt-VERSION"
        raise UsageError(f"unknown target {name!r}", fix=f"{fix} (docs/targets.md lists all)")
    return known[name]


def check_precision(target: Platform, precision: str, rest: str) -> None:
    """Raise UsageError for a precision that a platform does not have."""
    needs_22 = "bf16" in ((precision, rest) if precision in ("int8", "fp8") else (precision,))
    if needs_22 and target.can.strong_typing and target.can.opset < _BF16_OPSET:
        raise UsageError(
            f"--target {target.name} does not have BF16 in ONNX",
            why=f"it needs opset {_BF16_OPSET}, and the parser of {target.title} reads {target.can.opset}",
            fix="Use fp16",
        )
    fallback = rest if precision in ("int8", "fp8") else precision
    for flag, name in (("--precision", precision), ("--rest", fallback)):
        if name not in target.can.precisions or (target.dla and name not in ("fp16", "int8")):
            able = "fp16, int8" if target.dla else ", ".join(sorted(target.can.precisions))
            raise UsageError(
                f"--target {target.name} does not have {flag} {name}",
                why=f"it is {target.title}",
                fix=f"Choose one of {able}",
            )
