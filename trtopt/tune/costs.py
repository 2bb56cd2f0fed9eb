"""Costs of nodes, and what quantizing them saves, for each `--speed`.

A cost is any number that adds up over the nodes. Those of `--speed engine` are measured (`trtopt.tune.timed`).

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtopt.errors import UsageError
from trtopt.graph.query import attribute, constant, dims
from trtopt.precision.passes.operands import weighted_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

Cost = Callable[["ir.Node", Mapping[str, int]], float]
"""(node, number of elements by tensor for one sample): any cost of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The costs of a network.

    Attributes:
        cost: what a node costs in 16 bits.
        saving: what quantizing it saves.
        rest: what belongs to no node.
        quantized: what the network costs with everything quantized; None if that is what the savings tell.
    """

    cost: Cost
    saving: Cost
    rest: float = 0.0
    quantized: float | None = None


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
        return size(value, sizes) * math.prod(each or 1 for each in (dims(node.inputs[1]) or ())[1:])
    left = dims(node.inputs[0])
    inner = weight.shape[1 if attribute(node, "transB", 0) else -2] if weight is not None and weight.ndim > 1 else None
    if inner is None:
        inner = (left[-1] if left else None) or 1
    return size(node.outputs[0], sizes) * float(inner)


def elements(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Return the number of elements that a node reads and writes for one sample, weights included."""
    return float(sum(size(value, sizes) for value in [*node.inputs, *node.outputs] if value is not None))


def both(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Return multiplications, with the traffic as multiplications: about the time on a GPU."""
    return macs(node, sizes) + elements(node, sizes) * _PER_ELEMENT


def halved(cost: Cost) -> Speed:
    """Return the costs of a network of which 8 bits save half."""
    return Speed(cost=cost, saving=lambda node, sizes: cost(node, sizes) / 2)


SPEEDS = {"macs": halved(macs), "bytes": halved(elements)}
"""The costs that need no GPU."""

ENGINE = "engine"
"""The value of `--speed` that measures on this GPU."""


def check_speed(speed: str) -> None:
    """Raise UsageError if no measure of cost has this name."""
    names = (ENGINE, *SPEEDS)
    if speed not in names:
        raise UsageError(f"--speed {speed} is unknown", fix=f"Choose one of {', '.join(names)}")


def size(value: ir.Value | None, sizes: Mapping[str, int]) -> int:
    """Return the number of elements of a tensor for one sample, weights included; 0 for None."""
    if value is None:
        return 0
    known = sizes.get(value.name or "")
    return known if known else math.prod(each or 1 for each in dims(value) or ())
