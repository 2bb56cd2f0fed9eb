"""ONNX (and a table) to typed ONNX: `--precision NAME` is the module of that name.

A precision module has `OPSET`, the lowest opset that can express it, `NEEDS_TABLE`, whether it quantizes activations,
and `apply(model, request) -> tuple[Decision, ...]`, which rewrites the model in place. The other modules of this folder
are what they share: `eight_bits` (what INT8 and FP8 have in common), `placement`, with `residual` and `attention`
(which inputs are quantized, and why the others are not), `qdq` (writing Q/DQ pairs), `equalize` with `divisors`
(channels of similar range), `bias` (correcting the mean error of rounded weights), `keep` (what must stay in FP32),
`half` (writing 16-bit casts) and `graph`.
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
    """What a precision module may need: the type of the unquantized rest, the table, and observed magnitudes.

    `ranges[t]` is the largest magnitude seen in tensor t of the FP32 model, for as many tensors as were observed, and
    `sizes[t]` the number of its elements;
    `means[t]` the mean of each of its channels, float64 (see `bias`), for inputs of weighted operators, and `errors[t]`
    the mean of what rounding adds to them.
    """

    rest: str = "fp16"
    table: CalibrationTable | None = None
    ranges: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    means: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    errors: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)


class Precision(Protocol):
    """The shape of a precision module."""

    OPSET: int
    NEEDS_TABLE: bool

    def apply(self, model: ir.Model, request: Request) -> tuple[Decision, ...]:
        """Rewrite `model` in place, and say for every floating-point node which precision it got, and why."""
        ...


def precisions() -> tuple[str, ...]:
    """Names that `--precision` takes: the modules of this folder that are no shared helpers."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


def precision(name: str) -> Precision:
    """Return the precision module of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    if name not in precisions():
        near = difflib.get_close_matches(name.lower(), precisions(), 1)
        raise UsageError(
            f"unknown precision {name!r}",
            fix=f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(precisions())}",
        )
    return cast(Precision, importlib.import_module(f"{__name__}.{name}"))
