"""Images of Triton and their TensorRT. A serialized engine loads only in the version of TensorRT that built it.

The images are `nvcr.io/nvidia/tritonserver:NAME-py3`. NVIDIA's table of them (docs/introduction/compatibility.md in the
server's repository) is about the `trtllm-python-py3` images, which have another TensorRT and no TensorRT backend. The
numbers here are as precise as they are known, none of them was verified in the image, and `NAME=VERSION` overrides
them.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtopt.engine.trt.platforms import IMAGES
from trtopt.engine.trt.versions import parsed
from trtopt.errors import UsageError

DEFAULT = "26.03"
_DOTS = 3
_REGISTRY = "nvcr.io/nvidia/tritonserver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of Triton: its name on the command line, its reference for Docker, and its TensorRT."""

    name: str
    reference: str
    tensorrt: str

    @property
    def is_exact(self) -> bool:
        """True if all four numbers of the version are known, which must be those of a serialized engine."""
        return self.tensorrt.count(".") == _DOTS


def image(text: str) -> Image:
    """Return the image of a release such as `26.03`, or of `NAME=VERSION` with the version of its TensorRT.

    Raises:
        UsageError: the release is unknown, or the version is not one of TensorRT 10 or later.
    """
    name, stated, version = text.partition("=")
    known = ", ".join(f"{release} (TensorRT {tensorrt})" for release, tensorrt in IMAGES.items())
    if not stated and name not in IMAGES:
        raise UsageError(
            f"unknown image {text!r}", fix=f"Choose one of {known}, or state its TensorRT: --image {text}=10.16.0.72"
        )
    if not name or parsed(version or IMAGES.get(name, "")) < (10, 0):
        raise UsageError(
            f"invalid --image {text!r}",
            why="the version of a TensorRT from 10.0 on is expected after the equals sign",
            fix="Write --image 26.03=10.16.0.72",
        )
    is_reference = "/" in name or ":" in name
    reference = name if is_reference else f"{_REGISTRY}:{name}{'' if '-' in name else '-py3'}"
    return Image(name=name, reference=reference, tensorrt=version or IMAGES[name])


def loads(image: Image, builder: str) -> bool:
    """Return whether the image can load an engine by `builder`, such as `TensorRT 10.16.0.72`.

    Only the numbers that are known of both versions are compared.
    """
    product, _, version = builder.rpartition(" ")
    pairs = zip(version.split("."), image.tensorrt.split("."), strict=False)
    return product == "TensorRT" and all(left == right for left, right in pairs)


def fitting(builder: str) -> str:
    """Return what to do with an engine by `builder`: the image that loads it, or that none does."""
    found = [name for name in IMAGES if loads(image(name), builder)]
    if found:
        return f"Use --image {found[-1]}"
    if builder.startswith("TensorRT-RTX"):
        return "No image has TensorRT for RTX: leave out --engine, and build the plan in the image"
    return f"No known image has {builder}: state yours, --image NAME={builder.rpartition(' ')[2]}"
