"""Bias correction: the mean quantization error of each output channel is removed by a change of its bias.

Quantizing a weight W to W' changes the mean of an output channel by -(W - W') E[x], summed over its inputs. This is a
constant, so (W - W') E[x] is added to the bias, at no cost at run time. E[x], the mean of each input channel, is
measured over calibration samples (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.2). Zero padding at the borders of a convolution is not accounted for.

Quantizing the activation x to x' changes the mean further, by W' E[x' - x]. This is negligible for values that spread
over many quantization steps, and large where most values are equal: an image's empty background is rounded in the same
direction everywhere, in every layer. Clipped values are left out, because the error of an outlier is not a constant.

Which correction gives the highest output SQNR (none, weights only, weights and inputs) is decided by a trial elsewhere.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.graph.query import add_initializer, attribute, constant, dims, unique
from trtopt.graph.views import after
from trtopt.precision.passes.operands import channel_axis

if TYPE_CHECKING:
    import onnx_ir as ir

FloatArray = npt.NDArray[np.float32]
Means = Mapping[tuple[str, int], npt.NDArray[np.float64]]
"""Means per channel, float64 [channels], by the name of the tensor and the channel axis of its reader."""
NOTE = "; its bias corrects the mean quantization error of the weight"
NOTE_WITH_INPUT = NOTE + " and input"


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight in FP32, and its dequantized `values`."""

    weight: FloatArray
    values: FloatArray


def correct(
    node: ir.Node,
    rounded: Rounded,
    means: Means,
    errors: Means,
    taken: set[str],
    replaced: Callable[[ir.Node, int, ir.Value | None], None] = lambda *_: None,
) -> str:
    """Correct the bias of `node` in place for the mean quantization error, and return a note for its decision.

    A MatMul's bias is the constant of an Add after it, also behind operators that only move values. The node stays as
    it is, and the note is empty, if there is no such Add, if the channel means are unknown, or if the layout of the
    weight is not supported.

    Args:
        node: a weighted operator.
        rounded: its weight.
        means: mean of each channel of the inputs.
        errors: mean quantization error of each channel. For an input without an entry only the error of the weight is
            corrected.
        taken: the names in use in the graph; the name of the new bias is added.
        replaced: called with the node that adds the bias, the index of that input, and the old bias, if it has one.
    """
    axis = channel_axis(node)
    if axis is None or node.inputs[0] is None:
        return ""
    name = (node.inputs[0].name or "", axis)
    mean, error = means.get(name), errors.get(name)
    if mean is None:
        return ""
    shift = _mean_output(node, rounded.weight - rounded.values, mean)
    if shift is not None and error is not None:
        shift = shift - _mean_output(node, rounded.values, error)  # type: ignore[operator]  # the layout is supported
    if shift is None or not np.isfinite(shift).all():
        return ""
    adder, index, shape = _bias(node)
    if adder is None:
        return ""
    shift = shift.reshape(shape)
    old = constant(adder.inputs[index]) if index < len(adder.inputs) else None
    new = np.asarray(shift if old is None else np.asarray(old, np.float64) + shift, np.float32)
    if index >= len(adder.inputs):
        adder.resize_inputs(index + 1)
    before = adder.inputs[index]
    _replace(adder, index, new, unique(f"{node.name}/bias", taken))
    replaced(adder, index, before)
    return NOTE if error is None else NOTE_WITH_INPUT


def _mean_output(node: ir.Node, weight: FloatArray, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Return the contribution of `weight` to the mean of each output channel, float64 [outputs].

    `mean` is that of each input channel, [inputs]. Returns None if the layout of the weight is not supported.
    """
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        # Every tap of the kernel reads the same channel mean (but for the padding), so only their sum matters.
        taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)  # [outputs, inputs / groups]
        grouped = taps.reshape(groups, -1, taps.shape[1])
        return np.asarray(np.einsum("goi,gi->go", grouped, mean.reshape(groups, -1)).reshape(-1), np.float64)
    if node.op_type == "Gemm":
        # Gemm computes alpha A B + beta C. With transA the channels are not on the last axis of the input.
        scaled = any(node.attributes[n].as_float() != 1 for n in ("alpha", "beta") if n in node.attributes)
        if scaled or attribute(node, "transA", 0):
            return None
        return np.asarray((weight if attribute(node, "transB", 0) else weight.T) @ mean, np.float64)
    if node.op_type == "MatMul" and weight.ndim == 2:
        return np.asarray(weight.T @ mean, np.float64)
    return None


def _bias(node: ir.Node) -> tuple[ir.Node | None, int, tuple[int, ...]]:
    """Return the node that adds the bias, the index of that input, which need not exist yet, and the shape of a bias.

    The node is None if the bias is computed at run time, or if a MatMul has no Add after it, apart from operators that
    only move values. -1 in the shape is the number of channels.
    """
    if node.op_type in ("Conv", "Gemm"):
        computed = len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None
        return (None, 0, ()) if computed else (node, 2, (-1,))
    # MatMul: its only consumer must be an Add of a constant.
    value, axis = node.outputs[0], len(dims(node.outputs[0]) or ()) - 1
    while axis >= 0 and len(list(value.uses())) == 1 and not value.is_graph_output():
        user, index = next(iter(value.uses()))
        if user.op_type == "Add" and constant(user.inputs[1 - index]) is not None:
            return user, 1 - index, (-1, *(1 for _ in range(len(dims(value) or ()) - axis - 1)))
        moved = after(user, axis) if index == 0 else None
        if moved is None:
            break
        value, axis = user.outputs[0], moved
    return None, 0, ()


def _replace(node: ir.Node, index: int, array: FloatArray, name: str) -> None:
    """Replace an input by a new initializer: another node may read the old one."""
    import onnx_ir as ir

    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(index, add_initializer(node.graph, name, array, ir.DataType.FLOAT))
