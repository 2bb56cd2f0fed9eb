"""Bias correction: take the mean error that weight quantization causes out of each output channel.

Rounding a weight W to W' shifts the mean of an output channel by the sum of (W - W') E[x] over its inputs. The shift is
a constant, so it is added to the bias and costs nothing at run time. E[x] is the mean of each input channel over
samples of the calibration data (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.2, with measured means). Zero padding at the borders of a convolution is not accounted for.

Only the weights' error is corrected. The mean error of quantized activations is as easily computed, but where outliers
are clipped it is no constant: correcting it too took a sentence encoder from 11 dB to below 0, and gained little
elsewhere.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.precision.graph import add_initializer, attribute, constant, unique

if TYPE_CHECKING:
    import onnx_ir as ir

FloatArray = npt.NDArray[np.float32]
Means = Mapping[str, npt.NDArray[np.float64]]
NOTE = "; its bias corrects the mean error of the rounded weight"


def correct(node: ir.Node, error: FloatArray, means: Means, taken: set[str]) -> bool:
    """Add what `error` (weight minus quantized weight) loses on average to the bias of `node`; say whether it could.

    `means[t]` is the mean of each channel of tensor t: axis 1 for convolutions, the last axis for matrix products. A
    MatMul's bias is the constant of the Add behind it; without one it is left alone, as is a tensor without means.
    """
    mean = means.get(node.inputs[0].name or "") if node.inputs[0] is not None else None
    shift = _shift(node, error, mean) if mean is not None else None
    if shift is None or not np.isfinite(shift).all():
        return False
    reader, index = _bias(node)
    if reader is None:
        return False
    old = constant(reader.inputs[index]) if index < len(reader.inputs) else None
    new = np.asarray(shift if old is None else np.asarray(old, np.float64) + shift, np.float32)
    if index >= len(reader.inputs):
        reader.resize_inputs(index + 1)
    _replace(reader, index, new, unique(f"{node.name}/bias", taken))
    return True


def _shift(node: ir.Node, error: FloatArray, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """The mean loss of each output channel: float64 [output channels]; None where the layout is not handled."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        taps = error.reshape(*error.shape[:2], -1).sum(axis=2, dtype=np.float64)  # [out, in / groups]
        grouped = taps.reshape(groups, -1, taps.shape[1])
        return np.asarray(np.einsum("goi,gi->go", grouped, mean.reshape(groups, -1)).reshape(-1), np.float64)
    if (
        node.op_type == "Gemm"
        and not attribute(node, "transA", 0)
        and all(node.attributes[n].as_float() == 1 for n in ("alpha", "beta") if n in node.attributes)
    ):
        return np.asarray((error if attribute(node, "transB", 0) else error.T) @ mean, np.float64)
    if node.op_type == "MatMul" and error.ndim == 2:
        return np.asarray(error.T @ mean, np.float64)
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
