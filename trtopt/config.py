"""What a run was asked to do: immutable plans, and the parsing of flags that need more than a type.

Touches: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtopt.errors import UsageError
from trtopt.types import ShapeRange, TensorSpec

DEFAULT_BATCH = (1, 8, 32)
"""Smallest, best-tuned and largest batch of a dynamic batch dimension that `--shape` says nothing about."""

BACKENDS = ("tensorrt", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """Where samples come from. `recipe` is a name or a path; without one the data's own or the assumed one is used."""

    source: str
    recipe: str | None = None
    skip_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """How the engine is built. `tensorrt` forces `tensorrt` or `tensorrt_rtx`; sizes are in bytes."""

    backend: str = "tensorrt"
    tensorrt: str | None = None
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertPlan:
    """One conversion, from an ONNX file to a judged engine in `run_dir`."""

    source: Path
    precision: str
    run_dir: Path
    rest: str = "fp16"
    calib: DataPlan | None = None
    method: str = "entropy"
    table: Path | None = None
    data: DataPlan | None = None
    compare: bool = True
    gates: str = ""
    shapes: tuple[str, ...] = ()
    device: str = "cpu"
    build: BuildPlan = BuildPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePlan:
    """One comparison of a candidate (engine, ONNX file or run directory) against an FP32 ONNX file."""

    baseline: Path
    candidate: Path
    run_dir: Path
    data: DataPlan
    gates: str = ""
    device: str = "cpu"


def profile(inputs: Sequence[TensorSpec], shapes: Sequence[str]) -> tuple[tuple[ShapeRange, ...], str]:
    """Return the shape range of every dynamic input, and a line that states what was assumed (empty: nothing).

    `shapes` are flags `NAME=MIN:OPT:MAX` or `NAME=SHAPE`, each shape written 1x3x224x224. A dynamic first dimension
    without a flag gets `DEFAULT_BATCH`.

    Raises:
        UsageError: a flag does not parse or does not fit the model, or another dynamic dimension has no flag.
    """
    given = dict(_parse_shape(flag, inputs) for flag in shapes)
    ranges, assumed = [], ""
    for spec in inputs:
        dynamic = [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]
        if spec.name in given:
            ranges.append(given[spec.name])
        elif dynamic == [0]:
            low, best, high = ((size, *_fixed(spec)[1:]) for size in DEFAULT_BATCH)
            ranges.append(ShapeRange(name=spec.name, min=low, opt=best, max=high))
            assumed = "batch {} to {}, tuned for {}: --shape was not given".format(
                *(DEFAULT_BATCH[i] for i in (0, 2, 1))
            )
        elif dynamic:
            raise UsageError(
                f"input {spec.name} has dynamic dimensions [{', '.join(map(str, spec.shape))}]",
                why="TensorRT must know how small and how large they get",
                fix=f"Add --shape {_example(spec)} (smallest:usual:largest, with your sizes)",
            )
    return tuple(ranges), assumed


def _fixed(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 0 for dim in spec.shape)


def _example(spec: TensorSpec) -> str:
    def shape(batch: int) -> str:
        sizes = [batch if axis == 0 else 224 for axis in range(len(spec.shape))]
        return "x".join(str(d if isinstance(d, int) else s) for d, s in zip(spec.shape, sizes, strict=True))

    return f"{spec.name}={':'.join(shape(batch) for batch in DEFAULT_BATCH)}"


def _parse_shape(flag: str, inputs: Sequence[TensorSpec]) -> tuple[str, ShapeRange]:
    name, _, text = flag.rpartition("=")
    spec = next((spec for spec in inputs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"--shape {flag} names no input of the model", fix=f"Its inputs are: {names}")
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\d+(x\d+)*", part) for part in parts):
        raise UsageError(f"--shape {flag} does not parse", fix=f"Write it like --shape {_example(spec)}")
    low, best, high = (tuple(map(int, part.split("x"))) for part in (parts * 3 if len(parts) == 1 else parts))
    for shape in (low, best, high):
        if len(shape) != len(spec.shape):
            raise UsageError(f"--shape {flag} has rank {len(shape)}", why=f"{name} has rank {len(spec.shape)}")
        for size, dim in zip(shape, spec.shape, strict=True):
            if size < 1 or (isinstance(dim, int) and size != dim):
                wanted = ", ".join(map(str, spec.shape))
                raise UsageError(f"--shape {flag} does not fit {name}", why=f"the model wants [{wanted}]")
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise UsageError(f"--shape {flag} is not ordered", why="it must be smallest:usual:largest in every dimension")
    return name, ShapeRange(name=name, min=low, opt=best, max=high)
