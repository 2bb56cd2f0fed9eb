"""Nodes whose constants, weights, activations or sums do not fit into a 16-bit type.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trtopt.formats import Format
from trtopt.graph.query import constant, dims, is_float
from trtopt.precision.passes.masks import MASK

if TYPE_CHECKING:
    import onnx_ir as ir

RANGE_MARGIN = 2.0
"""A tensor stays in FP32 when `RANGE_MARGIN` times its observed absmax exceeds the type's maximum.

The margin is for inputs with larger activations than those of the observed samples.
"""
STEPS = 127
"""A tensor stays in FP32 when its absmax is below `STEPS` times the type's smallest positive value.

Eight bits would resolve it better than the 16-bit type does, and their scale would be 0 in that type.
"""
_AVERAGES = frozenset({"ReduceMean", "GlobalAveragePool"})


WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})


def vanishing(node: ir.Node, half: Format) -> float | None:
    """Return the magnitude of a constant of the node that rounds to 0 in `half`; None if there is none.

    An array counts if all of its non-zero elements round to 0; a quantization scale if any does, as 0 is not a scale.
    """
    is_quantization = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    for value in node.inputs:
        array = constant(value)
        if array is None or not is_float(value):
            continue
        magnitudes = np.abs(array[array != 0])
        if not magnitudes.size:
            continue
        deciding = magnitudes.min() if is_quantization else magnitudes.max()
        # Half of the smallest positive value is a tie, which rounds to the even neighbour, 0.
        if deciding <= half.tiny / 2:
            return float(magnitudes.min())
    return None


def constant_out_of_range(node: ir.Node, half: Format) -> str:
    """Return the reason if a constant overflows or rounds to 0; empty otherwise. Masks are exempt: they are clamped."""
    for value in node.inputs:
        array = constant(value)
        if array is None or not is_float(value):
            continue
        magnitudes = np.abs(array[np.isfinite(array)])
        values = magnitudes[magnitudes < MASK]
        if values.size and values.max() > half.max:
            return f"its constant reaches {values.max():.3g} {_limit(half)}"
    lost = vanishing(node, half)
    return "" if lost is None else f"its constant {lost:.3g} would become 0 in {half.name.upper()}"


def _limit(half: Format) -> str:
    return f"({half.name.upper()} maximum: {half.max:.5g})"


def _step(half: Format) -> str:
    return f"({half.name.upper()} step: {half.tiny:.3g})"


def activation_out_of_range(node: ir.Node, half: Format, ranges: Mapping[str, float]) -> str:
    """Return the reason if an input or output comes close to the type's maximum; empty otherwise."""
    for value in [*node.outputs, *node.inputs]:
        if value is None or not is_float(value):
            continue
        absmax = ranges.get(value.name or "", 0.0)
        if absmax * RANGE_MARGIN > half.max:
            return f"{value.name} reaches {absmax:.3g} {_limit(half)}"
        if 0 < absmax < STEPS * half.tiny:
            return f"{value.name} reaches only {absmax:.3g} {_step(half)}"
    return ""


def weight_out_of_range(node: ir.Node, half: Format) -> str:
    """Return the reason if the type would round away a weight of the node; empty otherwise."""
    for value in node.inputs if node.op_type in WEIGHTED else ():
        array = constant(value)
        if array is None or array.ndim < 2 or not is_float(value):
            continue
        absmax = float(np.abs(array).max(initial=0.0))
        if 0 < absmax < STEPS * half.tiny:
            return f"its weight reaches only {absmax:.3g} {_step(half)}"
    return ""


def sum_out_of_range(node: ir.Node, half: Format, ranges: Mapping[str, float], sizes: Mapping[str, int]) -> str:
    """Return the reason if a sum inside the operator overflows, although its result is in range; empty otherwise.

    The sum inside a mean is the mean times the number of terms; that inside an L2 norm is the square of the norm.
    """
    absmax = ranges.get(node.outputs[0].name or "", 0.0)
    if node.op_type == "ReduceL2":
        total, result = absmax**2, "norm"
    elif node.op_type in _AVERAGES:
        total, result = absmax * _terms(node, sizes), "mean"
    else:
        return ""
    if total <= half.max:
        return ""
    return f"the sum inside its {result} reaches {total:.3g} {_limit(half)}"


def _terms(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Return how many elements a reduction sums for each result: by observed sizes, or else by the static shapes.

    In shapes a dynamic dimension counts as 1, so that nothing is kept without evidence.
    """
    value, result = node.inputs[0], node.outputs[0]
    input_size, output_size = sizes.get((value and value.name) or "", 0), sizes.get(result.name or "", 0)
    if input_size and output_size:
        return input_size / output_size
    input_shape, output_shape = dims(value), dims(result)
    if input_shape is None or output_shape is None:
        return 1.0
    return float(np.prod([dim or 1 for dim in input_shape]) / np.prod([dim or 1 for dim in output_shape]))
