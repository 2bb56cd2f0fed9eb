"""Costs of nodes in 16 bits, of which 8 bits save half, for each `--speed`.

A cost is any number that adds up over the nodes. One that is measured on a GPU (`--speed engine`) would be a function
like the others here.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from trtopt.errors import EnvironmentUnableError, UsageError
from trtopt.graph.query import attribute, constant, dims
from trtopt.precision.passes.operands import weighted_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

Cost = Callable[["ir.Node", Mapping[str, int]], float]
"""(node, number of elements by tensor for one sample): what the node costs in 16 bits. In 8 bits it costs half."""

_PER_ELEMENT = 300
"""Multiplications that an element of traffic counts as. In INT8 it takes one byte less than in FP16. An H100 moves 3.35
TB/s, and does 495 T multiplications per second in FP16 and 990 T in INT8 (NVIDIA's data sheet, dense): a byte takes as
long as INT8 saves on 300 multiplications."""


def macs(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Return the multiplications of a weighted operator for one sample; 0 for another operator."""
    if not weighted_inputs(node):
        return 0.0
    weight = constant(node.inputs[1])
    if node.op_type in ("Conv", "ConvTranspose"):
        # Each output element (each input element of a transposed convolution) meets one slice of the weight.
        value = node.outputs[0] if node.op_type == "Conv" else node.inputs[0]
        return _size(value, sizes) * math.prod(size or 1 for size in (dims(node.inputs[1]) or ())[1:])
    left = dims(node.inputs[0])
    inner = weight.shape[1 if attribute(node, "transB", 0) else -2] if weight is not None and weight.ndim > 1 else None
    if inner is None:
        inner = (left[-1] if left else None) or 1
    return _size(node.outputs[0], sizes) * float(inner)


def elements(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Return the number of elements that a node reads and writes for one sample, weights included."""
    return float(sum(_size(value, sizes) for value in [*node.inputs, *node.outputs] if value is not None))


def both(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Return multiplications, with the traffic as multiplications: about the time on a GPU."""
    return macs(node, sizes) + elements(node, sizes) * _PER_ELEMENT


SPEEDS: dict[str, Cost] = {"macs": macs, "bytes": elements}
"""The costs that need no GPU."""

NAMES = ("engine", *SPEEDS)
"""The values of `--speed`."""


def cost_of(speed: str) -> Cost:
    """Return the cost that a value of `--speed` names.

    Raises:
        EnvironmentUnableError: it is `engine`.
        UsageError: the name is unknown.
    """
    if speed == "engine":
        from trtopt.engine.cuda.driver import has_gpu

        why = "this version does not time the layers of engines" if has_gpu() else "there is no GPU here"
        raise EnvironmentUnableError("--speed engine is not possible", why=why, fix="Use --speed macs or bytes")
    if speed not in SPEEDS:
        raise UsageError(f"--speed {speed} is unknown", fix=f"Choose one of {', '.join(NAMES)}")
    return SPEEDS[speed]


def _size(value: ir.Value | None, sizes: Mapping[str, int]) -> int:
    if value is None:
        return 0
    known = sizes.get(value.name or "")
    return known if known else math.prod(size or 1 for size in dims(value) or ())
