"""What is asked of a framework, and what it answers: values that travel to a child process and back as JSON.

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
    """An input that the user described: its type, and the shapes it may take (`name` empty: the module's first)."""

    name: str
    dtype: str
    shape: ShapeRange

    def dynamic(self) -> tuple[int, ...]:
        """Axes whose size may change."""
        pairs = zip(self.shape.min, self.shape.max, strict=True)
        return tuple(axis for axis, (low, high) in enumerate(pairs) if low != high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A source, and all that its export depends on: `weights` for a factory, `signature` for a SavedModel."""

    source: Source
    examples: tuple[Example, ...] = ()
    weights: Path | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An ONNX file that a framework wrote; `framework` names the framework and its version."""

    path: Path
    framework: str
    notes: tuple[str, ...]


def example_sizes(examples: Sequence[Example]) -> dict[str, tuple[int, ...]]:
    """Sizes to trace with, by input: the usual ones, but never 1 where an axis is dynamic, since a size of 1 says
    nothing about other sizes (torch.export takes it for a constant).
    """
    sizes = {}
    for example in examples:
        dynamic = example.dynamic()
        shape = example.shape
        sizes[example.name] = tuple(
            max(size, min(2, shape.max[axis])) if axis in dynamic else size for axis, size in enumerate(shape.opt)
        )
    return sizes
