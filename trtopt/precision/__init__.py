"""Precisions, which rewrite an FP32 ONNX graph as a typed one. `--precision NAME` is the module of that name.

A precision module has:
    OPSET         the lowest opset that can express it
    NEEDS_TABLE   whether it quantizes activations, and so needs a calibration table
    apply         rewrites the model in place and returns a `Decision` for each node

The other modules of this folder are shared by them:
    eight_bits    the common part of INT8 and FP8
    placement     which inputs are quantized, and why the others are not; with `residual` and `attention`
    qdq           scales, and Q/DQ pairs written into the graph
    equalize      activations equalized across channels; with `divisors`, which chooses the smoothing scales
    bias          biases corrected for the mean quantization error
    keep          which nodes must stay in FP32 beside a 16-bit type
    half          casts to a 16-bit type written into the graph
    graph         queries and small edits of an ONNX graph
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from trtopt.errors import UsageError
from trtopt.types import CalibrationTable, Decision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

_SHARED = frozenset("attention bias divisors eight_bits equalize graph half keep placement qdq residual".split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of a conversion, and statistics of the FP32 model's activations by tensor name.

    Attributes:
        rest: the fallback precision, of the nodes that are not quantized: `fp16`, `bf16` or `fp32`.
        table: the calibration table, for INT8 and FP8.
        ranges: absmax over the observed samples.
        sizes: observed number of elements.
        means: mean of each channel, float64 [channels], of the inputs of weighted operators (see `bias`).
        errors: mean quantization error of each channel of those inputs, float64 [channels].
    """

    rest: str = "fp16"
    table: CalibrationTable | None = None
    ranges: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    means: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    errors: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)


class Precision(Protocol):
    """The interface of a precision module."""

    OPSET: int
    NEEDS_TABLE: bool

    def apply(self, model: ir.Model, request: Request) -> tuple[Decision, ...]:
        """Rewrite `model` in place and return the precision of every floating-point node, with the reason."""
        ...


def precisions() -> tuple[str, ...]:
    """Return the names that `--precision` accepts: the modules of this folder, without the shared ones."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


def precision(name: str) -> Precision:
    """Return the precision module of that name.

    Raises:
        UsageError: the name is unknown; the message suggests the most similar one.
    """
    if name not in precisions():
        similar = difflib.get_close_matches(name.lower(), precisions(), 1)
        raise UsageError(
            f"unknown precision {name!r}",
            fix=f"Did you mean {similar[0]}?" if similar else f"Choose one of {', '.join(precisions())}",
        )
    return cast(Precision, importlib.import_module(f"{__name__}.{name}"))
