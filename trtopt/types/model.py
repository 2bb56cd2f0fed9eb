"""ONNX models: their inputs, outputs and shapes.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

Dim = int | str
"""A fixed size, or the name of a dynamic dimension (`?` for an unnamed one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of a model's input or output.

    `dtype` is a numpy name (`float32`, `int64`, ...) or `bfloat16`.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """Minimum, optimum and maximum shape of a dynamic input: one entry of a TensorRT optimization profile."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX file. `digest` is the SHA-256 of the file and its external data; `notes` are remarks for the user."""

    path: Path
    digest: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()
