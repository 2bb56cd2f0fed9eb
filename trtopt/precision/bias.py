"""Bias correction: take the mean error that rounding causes out of each output channel.

Rounding a weight W to W' shifts the mean of an output channel by the sum of (W - W') E[x] over its inputs. The shift is
a constant, so it is added to the bias and costs nothing at run time. E[x] is the mean of each input channel over
samples of the calibration data (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.2, with measured means). Zero padding at the borders of a convolution is not accounted for.

Rounding the activation x to x' shifts it by W' E[x - x'] more. That is nothing for values spread over many steps, and
much where most are equal: the empty background of a picture is rounded the same way at every place, and through all
layers. Values that are clipped do not count here, as what is lost of an outlier is no constant.

Whether the outputs of the whole network are nearer to FP32 with neither, the first or both is for a trial to say.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.precision.graph import add_initializer, attribute, constant, unique

if TYPE_CHECKING:
    import onnx_ir as ir

FloatArray = npt.NDArray[np.float32]
Means = Mapping[str, npt.NDArray[np.float64]]
NOTE = "; its bias corrects the mean error of the rounded weight"
NOTE_WITH_INPUT = NOTE + " and input"


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight in FP32, and the values that its codes stand for."""

    weight: FloatArray
    values: FloatArray


def correct(node: ir.Node, rounded: Rounded, means: Means, errors: Means, taken: set[str]) -> str:
    """Add what rounding loses on average to the bias of `node`, and return a note of it; an empty one if it cannot.

    `means[t]` is the mean of each channel of tensor t, axis 1 for convolutions, the last axis for matrix products, and
    `errors[t]` that of what rounding the tensor adds to it; without an entry there, only the weight's error is
    corrected. A MatMul's bias is the constant of the Add behind it; without one it is left alone, as is a tensor
    without means.
    """
    name = (node.inputs[0].name or "") if node.inputs[0] is not None else ""
    mean, error = means.get(name), errors.get(name)
    shift = _shift(node, rounded.weight - rounded.values, mean) if mean is not None else None
    if shift is not None and error is not None:
        shift = shift - _shift(node, rounded.values, error)  # type: ignore[operator]  # the layout is handled
    if shift is None or not np.isfinite(shift).all():
        return ""
    reader, index = _bias(node)
    if reader is None:
        return ""
    old = constant(reader.inputs[index]) if index < len(reader.inputs) else None
    new = np.asarray(shift if old is None else np.asarray(old, np.float64) + shift, np.float32)
    if index >= len(reader.inputs):
        reader.resize_inputs(index + 1)
    _replace(reader, index, new, unique(f"{node.name}/bias", taken))
    return NOTE if error is None else NOTE_WITH_INPUT


def _shift(node: ir.Node, weight: FloatArray, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """What a weight makes of that input in each output channel, float64; None where the layout is not handled."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)  # [out, in / groups]
        grouped = taps.reshape(groups, -1, taps.shape[1])
        return np.asarray(np.einsum("goi,gi->go", grouped, mean.reshape(groups, -1)).reshape(-1), np.float64)
    if (
        node.op_type == "Gemm"
        and not attribute(node, "transA", 0)
        and all(node.attributes[n].as_float() == 1 for n in ("alpha", "beta") if n in node.attributes)
    ):
        return np.asarray((weight if attribute(node, "transB", 0) else weight.T) @ mean, np.float64)
    if node.op_type == "MatMul" and weight.ndim == 2:
        return np.asarray(weight.T @ mean, np.float64)
    return None


def _bias(node: ir.Node) -> tuple[ir.Node | None, int]:
    """The node and input that add the bias; the input need not exist yet."""
    if node.op_type in ("Conv", "Gemm"):
        computed = len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None
        return (None, 0) if computed else (node, 2)
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None, 0
    index = 1 - uses[0].idx
    array = constant(uses[0].node.inputs[index])
    return (uses[0].node, index) if array is not None and array.ndim == 1 else (None, 0)


def _replace(node: ir.Node, index: int, array: FloatArray, name: str) -> None:
    import onnx_ir as ir

    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(index, add_initializer(node.graph, name, array, ir.DataType.FLOAT))
