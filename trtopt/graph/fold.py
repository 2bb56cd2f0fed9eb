"""Constant folding of expressions over weights of any size: what is bounded is growth, not size.

onnxslim folds constants of at most 1 MiB, because an Expand or a Range can turn a small graph into a large file. The
weight of a layer is often computed from larger constants, though: transposed (a tied embedding), cast, normalized
(weight norm), or with an update of low rank. Only a constant weight has a scale per channel.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtopt.graph.query import dims

if TYPE_CHECKING:
    import onnx_ir as ir

_MAX_GROWTH = 2 << 30
"""Bytes that all folded constants together may add to a model, at most. It is also at most twice its weights."""

# Operators of a weight's expression whose result may be larger than their inputs.
_MAY_GROW = frozenset({"Cast", "MatMul", "Gemm", "Einsum"})
# Quantized weights stay as they are.
_NEVER = frozenset({"QuantizeLinear", "DequantizeLinear"})


def fold(model: ir.Model) -> None:
    """Replace every node that computes a constant from constants by its result, in place, unless the model would grow.

    The shapes of all tensors must have been inferred.
    """
    from onnxscript.optimizer import fold_constants

    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    left = min(2 * sum(weight.nbytes for weight in weights), _MAX_GROWTH)

    def should_fold(node: ir.Node) -> bool:
        nonlocal left
        growth = _growth(node)
        if node.op_type in _NEVER or growth is None or growth > (left if node.op_type in _MAY_GROW else 0):
            return False
        left -= max(growth, 0)
        return True

    limits = {"input_size_limit": 1 << 62, "output_size_limit": 1 << 62}
    try:
        fold_constants(model, **limits, should_fold=should_fold)
    except Exception:  # noqa: BLE001 - an expression that cannot be evaluated here is computed at run time
        return


def _growth(node: ir.Node) -> int | None:
    """Return how many bytes the outputs of a node are larger than its constant inputs; None if it is not known."""
    size = 0
    for value in node.outputs:
        sizes = dims(value)
        if sizes is None or None in sizes or value.dtype is None:
            return None
        size += math.ceil(math.prod(filter(None, sizes)) * value.dtype.itemsize)
    constants = {value.name: value.const_value for value in node.inputs if value is not None}
    return size - sum(constant.nbytes for constant in constants.values() if constant is not None)
