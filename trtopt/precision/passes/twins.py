"""Measurement of what quantization adds: beside each quantized node a copy that reads its inputs quantized.

The node itself reads exact inputs, so the difference of both is the error that this node alone adds.

Touches: nothing; it reads the onnx-ir model it is given, and returns a new one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trtopt.formats import Format
from trtopt.graph.query import constant, dims, is_float, unique
from trtopt.precision import Request
from trtopt.precision.passes import eight_bits
from trtopt.precision.passes.appender import Appender

if TYPE_CHECKING:
    import onnx_ir as ir

MERGING = frozenset({"Add", "Sub", "Sum", "Concat"})
"""Operators that mix the errors of their inputs by their energies."""


ERROR = "trtopt/error"
POWER = "trtopt/power"


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """A network with twins.

    Attributes:
        model: returns `ERROR`, float32 [nodes], the relative error energy of each quantized node's result, from 0 to 1,
            as a mean over its channels; and `POWER`, float32 [merged], the energies of tensors.
        nodes: the names of the nodes.
        merged: the names of the tensors: the inputs and outputs of operators that merge tensors.
    """

    model: ir.Model
    nodes: tuple[str, ...]
    merged: tuple[str, ...]


def twinned(model: ir.Model, request: Request, format: Format) -> Twins:
    """Return a copy of a prepared FP32 model with a twin beside every node that `placement` quantizes.

    The correction of the bias of a MatMul is in an Add after it, and is not part of its twin.

    Raises:
        TableError: the table lacks a scale.
        ModelError: the model is quantized already.
    """
    import onnx_ir as ir

    model = model.clone()
    graph = model.graph
    replaced: dict[ir.Node, dict[int, ir.Value | None]] = {}
    holders: list[ir.Node] = []  # they use the exact operands, so that these stay in the graph

    def attach(node: ir.Node, reader: ir.Node, index: int, before: ir.Value | None) -> None:
        if reader is node:
            replaced.setdefault(node, {})[index] = before
        if before is not None:
            holders.append(ir.node("Identity", [before]))
            graph.append(holders[-1])

    merging = [node for node in graph if node.op_type in MERGING and is_float(node.outputs[0])]
    values = [value for node in merging for value in [*node.inputs, *node.outputs] if value is not None]
    merged = {value.name or "": value for value in values if is_float(value) and constant(value) is None}
    eight_bits.apply(model, replace(request, rest="fp32"), format, attach)
    add = Appender(graph)
    errors: list[ir.Value] = []
    for node, exact in replaced.items():
        quantized = list(node.inputs)
        for index, value in exact.items():
            node.replace_input_with(index, value)
        twin = ir.node(node.op_type, quantized, dict(node.attributes), name=unique(f"{node.name}/twin", add.taken))
        twin.outputs[0].name = unique(f"{node.name}/twin/result", add.taken)
        twin.outputs[0].type = node.outputs[0].type
        graph.append(twin)
        errors.append(_relative_error(add, node, twin.outputs[0]))
    for holder in holders:
        graph.remove(holder, safe=True)
    del graph.outputs[:]
    add.output(ERROR, errors)
    if merged:
        add.output(POWER, [add.energy(value) for value in merged.values()])
    graph.sort()
    return Twins(model=model, nodes=tuple(node.name or "" for node in replaced), merged=tuple(merged))


def _relative_error(add: Appender, node: ir.Node, twin: ir.Value) -> ir.Value:
    """Append the relative error energy of the twin of a node, as a mean over the channels, float32 [1].

    A channel of small values counts as much as one of large values: the next operator may scale it up. (On an
    EfficientNet-Lite0, 10 of the 12 groups with the largest error at the output are among the 12 largest such
    estimates, and 7 if energies are summed over the channels.)
    """
    exact = node.outputs[0]
    rank = len(dims(exact) or ())
    channels = 1 if node.op_type in ("Conv", "ConvTranspose") or (rank == 4 and node.op_type != "MatMul") else rank - 1
    others = [axis for axis in range(rank) if axis != channels]
    axes = add.constant(np.array(others, np.int64)) if rank else None
    one, tiny = (add.constant(np.array(number, np.float32)) for number in (1.0, np.finfo(np.float32).tiny))

    def energy(value: ir.Value) -> ir.Value:
        if axes is None or not others:
            return add.energy(value)
        return add.node("ReduceSumSquare", [value, axes], {"keepdims": 0})

    error, signal = energy(add.node("Sub", [twin, exact])), energy(exact)
    ratio = add.node("Min", [add.node("Div", [error, add.node("Max", [signal, tiny])]), one])
    flat = add.node("Reshape", [ratio, add.constant(np.array([-1]))])
    return add.node("ReduceMean", [flat], {"keepdims": 1})
