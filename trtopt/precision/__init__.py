"""Precisions, which rewrite an FP32 ONNX graph as a typed one. `--precision NAME` is the module of that name.

A precision module has:
    FORMAT   its number type (`trtopt.formats`): whether values need scales, the lowest opset, the error of rounding
    apply    rewrites the model in place and returns a `Decision` for each node

The folder `passes/` holds what they share:
    eight_bits    the common part of INT8 and FP8
    placement     which inputs are quantized, and why not; with `operands`, `gain`, `residual`, `attention`
    qdq           scales, and Q/DQ pairs written into the graph
    equalize      activations equalized across channels; with `pairs`, which ones, and `smoothing`, the scales
    bias          biases corrected for the mean quantization error
    blocks        measurement of what a 16-bit type spoils; `patterns` recognizes the usual cases without samples
    keep          which nodes must stay in FP32 beside a 16-bit type; with `extent`, what does not fit into it
    recurrent     recurrent operators that TensorRT's parser refuses in 16 bits
    masks         numbers that mean infinity, and the nodes that bring them to an output
    half          casts to a 16-bit type written into the graph
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from trtopt import plugins
from trtopt.formats import Format
from trtopt.types import CalibrationTable, Decision, Keep

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of a conversion, and statistics of the FP32 model's activations by tensor name.

    Attributes:
        rest: the fallback precision, of the nodes that are not quantized: `fp16`, `bf16` or `fp32`.
        keep: the nodes to keep in higher precision, by name.
        table: the calibration table, for INT8 and FP8.
        ranges: absmax over the observed samples, without infinities and masks.
        masks: the largest number that means infinity, of the tensors in which one was observed.
        sizes: observed number of elements.
        means: mean of each channel, float64 [channels], of the inputs of weighted operators, by tensor name and channel
            axis (see `bias`).
        errors: mean quantization error of each channel of those inputs, float64 [channels].
        spoiled: the nodes that the 16-bit type would spoil, with reasons. None if that was not measured.
    """

    rest: str = "fp16"
    keep: Mapping[str, Keep] = field(default_factory=dict)
    table: CalibrationTable | None = None
    ranges: Mapping[str, float] = field(default_factory=dict)
    masks: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    means: Mapping[tuple[str, int], npt.NDArray[np.float64]] = field(default_factory=dict)
    errors: Mapping[tuple[str, int], npt.NDArray[np.float64]] = field(default_factory=dict)
    spoiled: Mapping[str, str] | None = None


class Precision(Protocol):
    """The interface of a precision module."""

    FORMAT: Format

    def apply(self, model: ir.Model, request: Request) -> tuple[Decision, ...]:
        """Rewrite `model` in place and return the precision of every floating-point node, with the reason."""
        ...


def precisions() -> tuple[str, ...]:
    """Return the names that `--precision` accepts."""
    return plugins.names(__name__)


def precision(name: str) -> Precision:
    """Return the precision module of that name.

    Raises:
        UsageError: the name is unknown; the message suggests the closest one.
    """
    return cast(Precision, plugins.load(__name__, name, "precision"))


def lowest_opset(name: str, rest: str) -> int:
    """Return the lowest opset that can express a precision, with `rest` as its fallback precision."""
    format = precision(name).FORMAT
    return max(format.opset, precision(rest).FORMAT.opset) if format.scaled else format.opset


@functools.cache
def formats(bits: int) -> Mapping[str, Format]:
    """Return the number types of a size, by the name of their precision."""
    found = {name: precision(name).FORMAT for name in precisions()}
    return {name: format for name, format in found.items() if format.bits == bits}


def fallbacks() -> tuple[str, ...]:
    """Return the names that `--rest` accepts: the precisions whose values need no scale."""
    return tuple(name for name in precisions() if not precision(name).FORMAT.scaled)
