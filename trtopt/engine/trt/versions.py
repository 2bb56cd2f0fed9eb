"""The TensorRT packages and versions, and what each of them can do: the only place that compares versions.

    package         versions         networks          run by trtopt's developers
    tensorrt        8.5, 8.6         weakly typed      8.5.3.1 on an H200
    tensorrt        10.0 to 10.16    strongly typed    no: from NVIDIA's documentation and headers
    tensorrt        11               strongly typed    no: from NVIDIA's documentation
    tensorrt_rtx    1.3 and later    strongly typed    1.7.1: parser and builder, without a GPU

A strongly typed network computes in the types of its tensors. A weakly typed one is in FP32: the builder may lower
every layer to the precisions that its flags allow, and constraints keep single layers in FP32.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

PRODUCT = "tensorrt"
RTX = "tensorrt_rtx"

Version = tuple[int, int]
"""Major and minor version."""

MINIMUM: dict[str, Version] = {PRODUCT: (8, 5), RTX: (1, 3)}
"""Supported packages in order of preference, with the oldest version of each."""


RTX_DEVICES = "portable: compute capability 8.0, 8.6, 8.9, 12.0 and later"
"""Devices that a TensorRT-RTX engine runs on by default (NVIDIA, "CPU-Only AOT and TensorRT-RTX Engines")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """Abilities of a TensorRT.

    Attributes:
        strong_typing: networks are strongly typed. Otherwise precision is set by flags and by constraints on layers.
        precisions: the values of `--precision` that it has.
        progress: the builder has a progress monitor, by which it can be cancelled, too.
        builder_options: optimization levels, version-compatible and hardware-compatible engines.
        preview_dynamic: dynamic shapes of transformers need a preview feature.
        shared_profiles: several execution contexts may use one optimization profile at the same time.
        sized_memory: an execution context receives its memory with the size.
        opset: the newest opset that the parser reads.
        lacks: operators that the parser lacks or fails at, and that preparation writes out (`graph.spelled`).
        calibrator: it has an entropy calibrator of its own.
        typing_flag: trtexec builds a strongly typed network only with `--stronglyTyped`.
        skips_inference: trtexec has `--skipInference`, before `--buildOnly`.
    """

    strong_typing: bool
    precisions: frozenset[str]
    progress: bool
    builder_options: bool
    preview_dynamic: bool
    shared_profiles: bool
    sized_memory: bool
    opset: int
    lacks: frozenset[str]
    calibrator: bool
    typing_flag: bool
    skips_inference: bool


_ALL = frozenset({"fp32", "fp16", "bf16", "int8", "fp8"})


def abilities(package: str, version: str) -> Abilities:
    """Return the abilities of a supported version of a package, such as `10.13.3.9` of `tensorrt`."""
    number = parsed(version)
    rtx = package == RTX
    ten = rtx or number >= (10, 0)
    return Abilities(
        strong_typing=ten,
        precisions=_ALL if ten else frozenset({"fp32", "fp16", "int8"}),
        progress=ten,
        builder_options=rtx or number >= (8, 6),
        preview_dynamic=not rtx and number < (8, 6),
        shared_profiles=ten,
        sized_memory=rtx or number >= (10, 1),
        opset=_opset(number) if not rtx else 24,
        lacks=_lacks(number) if not rtx else frozenset(),
        calibrator=not rtx and number < (11, 0),
        typing_flag=not rtx and (10, 0) <= number < (11, 0),
        skips_inference=rtx or number >= (8, 6),
    )


def _lacks(number: Version) -> frozenset[str]:
    """Return the operators to write out.

    LayerNormalization came with 8.6, and Gelu with opset 20. The parser of 8.5 crashes at a Range over a dynamic size,
    and ignores `start` and `end` of a Shape.
    """
    if number >= (10, 0):
        return frozenset()
    return frozenset({"Gelu", "Range", "Shape"} | ({"LayerNormalization"} if number < (8, 6) else set()))


def _opset(number: Version) -> int:
    """Return the newest opset that the parser of TensorRT reads (NVIDIA's operator tables of each release)."""
    newest = {(11, 5): 25, (10, 12): 24, (10, 0): 20, (8, 5): 17}
    return next(opset for since, opset in newest.items() if number >= since)


def parsed(version: str) -> Version:
    """Return the major and minor number of a version; (0, 0) if it has none."""
    numbers = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)
