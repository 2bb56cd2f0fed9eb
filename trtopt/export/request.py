"""Messages between trtopt and the child process that runs a framework: the request and the result, sent as JSON.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtopt.export.source import Source
from trtopt.types import ShapeRange

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An input as the user described it: its dtype and the range of its shapes.

    `name` is empty when the user gave none: it is then the module's first input.
    """

    name: str
    dtype: str
    shape: ShapeRange

    def dynamic(self) -> tuple[int, ...]:
        """Return the axes whose size may change."""
        pairs = zip(self.shape.min, self.shape.max, strict=True)
        return tuple(axis for axis, (low, high) in enumerate(pairs) if low != high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A source and the options of its export: `weights` for a factory, `signature` for a SavedModel."""

    source: Source
    examples: tuple[Example, ...] = ()
    weights: Path | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An ONNX file written by a framework; `framework` is its name and version."""

    path: Path
    framework: str
    notes: tuple[str, ...]


def example_sizes(examples: Sequence[Example]) -> dict[str, tuple[int, ...]]:
    """Return the shape to trace each input with, by name: its optimum, with dynamic axes at least 2 where they may be.

    torch.export specializes on a size of 1: it takes the axis for a constant.
    """
    shapes = {}
    for example in examples:
        sizes = list(example.shape.opt)
        for axis in example.dynamic():
            sizes[axis] = max(sizes[axis], min(2, example.shape.max[axis]))
        shapes[example.name] = tuple(sizes)
    return shapes
