"""Selection of the nodes that must stay in FP32 beside a 16-bit type, each with the reason.

There is one small function per reason:
    _unsupported              the operator does not support the type
    refused.refusal           TensorRT does not support the type, or not in this form of the operator
    _index_nodes              it computes positions, which must be exact
    carriers_to_outputs       it brings a mask's infinity to an output
    constant_out_of_range    a constant overflows the type, or rounds to 0
    _guarded_divisions        a constant that rounds to 0 guards a division or a logarithm
    activation_out_of_range  an observed activation comes close to the type's maximum
    sum_out_of_range         a sum inside the operator overflows

Others are kept because rounding was measured to spoil a result (`blocks`).

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from trtopt.formats import Format
from trtopt.graph.query import FLOAT_COMPUTE_FREE, float_nodes, is_float
from trtopt.precision import Request
from trtopt.precision.passes import patterns, refused
from trtopt.precision.passes.extent import (
    WEIGHTED,
    activation_out_of_range,
    constant_out_of_range,
    sum_out_of_range,
    vanishing,
    weight_out_of_range,
)
from trtopt.precision.passes.half import supports
from trtopt.precision.passes.masks import carriers_to_outputs
from trtopt.types import Keep

if TYPE_CHECKING:
    import onnx_ir as ir


# The data type of their output is an attribute, which is left as it is.
_TYPE_IS_ATTRIBUTE = frozenset(
    "CastLike EyeLike RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial "
    "HannWindow HammingWindow BlackmanWindow MelWeightMatrix".split()
)
# The schemas allow 16 bits all the same.
_FP32_ONLY = {
    "BitCast": "it depends on the bits of its input",
    "MeanVarianceNormalization": "ONNX defines it with FP32 constants, and rejects it in 16 bits",
}
# Operators that positions and sizes are usually computed with.
_INDEX_ARITHMETIC = FLOAT_COMPUTE_FREE | frozenset(
    "Add Sub Mul Div Mod Pow Sqrt Floor Ceil Round Neg Abs Sign Min Max Clip Range CumSum "
    "ReduceMax ReduceMin ReduceSum ReduceProd".split()
)
# Operators that keep a value away from 0 with a tiny constant, and those that may follow before the division.
_GUARDS = frozenset({"Add", "Max", "Clip"})
_BETWEEN_GUARD_AND_DIVISION = FLOAT_COMPUTE_FREE | frozenset({"Sqrt", "Pow", "Abs", "Neg", "Reciprocal"})


def keep(model: ir.Model, half: Format, request: Request) -> dict[ir.Node, str]:
    """Return the floating-point nodes that must stay in FP32, each with the reason.

    Args:
        model: the FP32 model.
        half: the 16-bit type of the other nodes.
        request: the nodes that the user keeps, and the statistics of the activations. A tensor without an entry in
            `ranges` is assumed to be in range, and `sizes` are for sums over dynamic dimensions. What was not measured
            is recognized by `patterns`.
    """
    ranges, sizes = request.ranges, request.sizes
    spoiled = patterns.spoiled(model) if request.spoiled is None else request.spoiled
    opset = model.opset_imports.get("", 1)
    index_nodes = _index_nodes(model.graph)
    guarded = _guarded_divisions(model.graph, half)
    carriers = carriers_to_outputs(model.graph, request.masks)
    kept: dict[ir.Node, str] = {}
    for node in float_nodes(model.graph):
        reason = (
            _asked(request.keep.get(node.name or ""))
            or _unsupported(node, opset, half)
            or refused.refusal(node, half)
            or ("computes positions or sizes" if node in index_nodes else "")
            or constant_out_of_range(node, half)
            or ("an output of the network holds its mask" if node in carriers else "")
            or ("a tiny constant guards its division or logarithm against 0" if node in guarded else "")
            or activation_out_of_range(node, half, ranges)
            or weight_out_of_range(node, half)
            or sum_out_of_range(node, half, ranges, sizes)
            or spoiled.get(node.name or "", "")
        )
        if reason:
            kept[node] = reason
    _fill_islands(model.graph, kept)
    return kept


def _asked(keep: Keep | None) -> str:
    """Return the reason if the node is to be kept in FP32; empty otherwise."""
    return keep.reason if keep is not None and keep.precision == "fp32" else ""


def _unsupported(node: ir.Node, opset: int, half: Format) -> str:
    """Return why the operator cannot compute in the type; empty if it can."""
    import onnx_ir as ir

    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        return "it contains a subgraph"
    if not all(
        isinstance(value.type, ir.TensorType) for value in [*node.inputs, *node.outputs] if value and value.type
    ):
        return "it reads or returns a sequence or an optional"
    if node.op_type == "Constant":  # preparation leaves those that are outputs of the network
        return "a constant as an output"
    if node.op_type in _FP32_ONLY:
        return _FP32_ONLY[node.op_type]
    tensors = [attr.as_tensor() for attr in node.attributes.values() if attr.type == ir.AttributeType.TENSOR]
    if node.op_type != "ConstantOfShape" and any(tensor.dtype == ir.DataType.FLOAT for tensor in tensors):
        return "its constants are attributes in FP32"
    if node.op_type in _TYPE_IS_ATTRIBUTE:
        return "its data type is an attribute"
    supported = supports(node, opset, half)
    if supported is None:
        return "a custom operator: the types that it supports are unknown"
    inputs, outputs = supported
    has_fp32_output = any(is_float(value) and not ok for value, ok in zip(node.outputs, outputs, strict=True))
    if has_fp32_output or not any(inputs + outputs):
        return f"the operator does not support {half.name.upper()}"
    # The schema allows BF16 statistics, but the attribute stash_type makes them FP32.
    if node.op_type == "LayerNormalization" and any(is_float(value) for value in node.outputs[1:]):
        return "its statistics are FP32 outputs"
    return ""


def _index_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute positions: those between a cast from integers and a cast to integers.

    Positions must be exact, and FP16 rounds 2049 to 2048.
    """
    import onnx_ir as ir

    casts = [node for node in graph if node.op_type == "Cast"]
    to_float = [node for node in casts if node.outputs[0].dtype == ir.DataType.FLOAT and not is_float(node.inputs[0])]
    integers = (ir.DataType.INT64, ir.DataType.INT32)
    to_integer = [node for node in casts if is_float(node.inputs[0]) and node.outputs[0].dtype in integers]
    after = _reachable(to_float, lambda node: node.successors())
    before = _reachable(to_integer, lambda node: node.predecessors())
    return after & before


def _reachable(start: Iterable[ir.Node], step: Callable[[ir.Node], Iterable[ir.Node]]) -> set[ir.Node]:
    """Return the nodes reachable from `start` through floating-point index arithmetic, `start` included.

    Other operators end the walk. Otherwise a network with uint8 images as its input and a class index as its output
    would consist of positions.
    """
    todo = list(start)
    reached = set(todo)
    while todo:
        for node in step(todo.pop()):
            floating = any(is_float(value) for value in [*node.inputs, *node.outputs])
            if node not in reached and floating and node.op_type in _INDEX_ARITHMETIC:
                reached.add(node)
                todo.append(node)
    return reached


def _guarded_divisions(graph: ir.Graph, half: Format) -> set[ir.Node]:
    """Return the divisions and logarithms of `x + 1e-12`, `max(x, 1e-12)` or a root of these, and the nodes between.

    The guard itself stays in FP32, because its constant rounds to 0. If its result were cast to 16 bits, it could still
    round to 0, and the division would give infinity. A logarithm also tells values from 0 that are as small as the
    constant, so the node that computes them is returned, too.
    """
    todo = [node for node in float_nodes(graph) if node.op_type in _GUARDS and vanishing(node, half) is not None]
    guards, passed, guarded = set(todo), set(todo), set()
    # Forward from the guards, to the divisions.
    while todo:
        node = todo.pop()
        # The reciprocal of a small value overflows, so the Mul by it is part of the division.
        is_inverse = node.op_type in ("Reciprocal", "Pow")
        for value in node.outputs:
            for consumer, index in value.uses():
                is_log = consumer.op_type == "Log"
                is_divisor = consumer.op_type == "Div" and index == 1
                is_factor = consumer.op_type == "Mul" and is_inverse
                if is_log or is_divisor or is_factor:
                    guarded.add(consumer)
                elif consumer.op_type in _BETWEEN_GUARD_AND_DIVISION and consumer not in passed:
                    passed.add(consumer)
                    todo.append(consumer)
    # Back from the divisions, to add the nodes between. Nodes that do not lead to a division are left out.
    todo = list(guarded)
    while todo:
        for node in todo.pop().predecessors():
            if node in passed and node not in guarded:
                guarded.add(node)
                todo.append(node)
    return guarded | _measured_by_logarithms(guarded, guards)


def _measured_by_logarithms(guarded: set[ir.Node], guards: set[ir.Node]) -> set[ir.Node]:
    """Return the nodes that compute the values that a guard keeps away from 0 for a logarithm."""
    measured: set[ir.Node] = set()
    visited: set[ir.Node] = set()
    todo = [node for node in guarded if node.op_type == "Log"]
    while todo:
        node = todo.pop()
        visited.add(node)
        for before in node.predecessors():
            if node in guards or node in measured:
                measured.add(before)
            passes = before.op_type in FLOAT_COMPUTE_FREE if before in measured else before in guarded
            if passes and before not in visited:
                todo.append(before)
    return measured


def _fill_islands(graph: ir.Graph, kept: dict[ir.Node, str]) -> None:
    """Keep the nodes whose neighbours are all kept, in place: in 16 bits they would only add two casts.

    Weighted operators are exempt, since they are faster in 16 bits even so.
    """
    changed = True
    while changed:
        changed = False
        for node in float_nodes(graph):
            neighbours = [*node.predecessors(), *node.successors()]
            # A node without neighbours brings an input to an output: it may have to be exact, and gains nothing.
            is_alone = not neighbours and node.op_type not in FLOAT_COMPUTE_FREE
            is_island = not is_alone and all(neighbour in kept for neighbour in neighbours)
            if node not in kept and is_island and node.op_type not in WEIGHTED:
                kept[node] = "all its neighbours stay in FP32"
                changed = True
