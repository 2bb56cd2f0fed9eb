"""Estimates of the error that each group adds to the outputs, from one pass over a few samples.

The relative error that a node adds to its own result is measured. How much of it arrives at the outputs is a model: an
operator passes on the relative error of its input, and where tensors are added or concatenated, each counts by its
share of the energy. So the error of a small branch beside a large skip hardly counts.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.graph.query import constant, is_float
from trtopt.precision.passes.twins import MERGING

if TYPE_CHECKING:
    import onnx_ir as ir


def gains(model: ir.Model, powers: Mapping[str, float]) -> dict[str, float]:
    """Return by tensor the share of its relative error energy that arrives at the outputs, as a mean over the outputs.

    Args:
        model: the FP32 model.
        powers: energies of the inputs and outputs of operators that merge tensors.
    """
    count = len(model.graph.outputs)
    shares: dict[ir.Value, npt.NDArray[np.float64]] = {}
    for index, output in enumerate(model.graph.outputs):
        shares.setdefault(output, np.zeros(count))[index] = 1.0
    for node in reversed(list(model.graph)):
        result = np.zeros(count)
        for value in node.outputs:
            result = np.maximum(result, shares.get(value, 0.0))
        for operand in node.inputs:
            if operand is None or not is_float(operand) or constant(operand) is not None:
                continue
            part = 1.0
            if node.op_type in MERGING:
                whole, mine = (powers.get(each.name or "", 0.0) for each in (node.outputs[0], operand))
                part = min(1.0, mine / whole) if whole > 0 and np.isfinite([mine, whole]).all() else 1.0
            # A relative error is not amplified: the paths from a tensor to an output share their errors.
            shares[operand] = np.minimum(1.0, shares.get(operand, np.zeros(count)) + part * result)
    return {value.name or "": float(share.mean()) for value, share in shares.items()}
