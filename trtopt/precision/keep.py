"""Which nodes must stay in FP32 beside a 16-bit type, each with the reason.

One small function a reason: the operator has no such form, it computes positions, a constant or an observed magnitude
leaves the type's range, a sum inside the operator does, or a tiny constant guards a division.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from trtopt.precision.graph import FLOAT_COMPUTE_FREE, constant, dims, float_nodes, is_float
from trtopt.precision.half import INFINITY_STAND_IN, Half, accepts

if TYPE_CHECKING:
    import onnx_ir as ir

RANGE_MARGIN = 2.0
"""A tensor stays in FP32 when `RANGE_MARGIN` times its largest observed magnitude leaves the type's range: the samples
observed are not all the samples that will come."""

STEPS = 127
"""A tensor stays in FP32 when its largest magnitude is less than `STEPS` times the type's smallest positive value: 8
bits would resolve it better than the 16-bit type does, and their scale would be 0 in that type."""

_TYPE_IS_ATTRIBUTE = frozenset(
    "CastLike EyeLike RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial "
    "HannWindow HammingWindow BlackmanWindow MelWeightMatrix".split()
)
_AVERAGES = frozenset({"ReduceMean", "GlobalAveragePool"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})
_INDEX_ARITHMETIC = FLOAT_COMPUTE_FREE | frozenset(
    "Add Sub Mul Div Mod Pow Sqrt Floor Ceil Round Neg Abs Sign Min Max Clip Range CumSum "
    "ReduceMax ReduceMin ReduceSum ReduceProd".split()
)
_GUARDS = frozenset({"Add", "Max", "Clip"})
_SMALL_STAYS_SMALL = FLOAT_COMPUTE_FREE | frozenset({"Sqrt", "Pow", "Abs", "Neg", "Reciprocal"})


def keep(
    model: ir.Model, half: Half, ranges: Mapping[str, float], sizes: Mapping[str, int] = MappingProxyType({})
) -> dict[ir.Node, str]:
    """Return the floating-point nodes that must stay in FP32, each with the reason.

    `ranges[t]` is the largest magnitude observed in tensor t, `sizes[t]` how many elements it had; tensors without an
    entry are trusted.
    """
    opset = model.opset_imports.get("", 1)
    index_nodes = _index_nodes(model.graph)
    guarded = _guarded_divisions(model.graph, half)
    kept: dict[ir.Node, str] = {}
    for node in float_nodes(model.graph):
        reason = (
            _unable(node, opset, half)
            or ("computes positions or sizes" if node in index_nodes else "")
            or _constant_out_of_range(node, half)
            or ("divides by what a tiny constant keeps from 0" if node in guarded else "")
            or _activation_out_of_range(node, half, ranges)
            or _weight_out_of_range(node, half)
            or _sum_out_of_range(node, half, ranges, sizes)
        )
        if reason:
            kept[node] = reason
    _fill_islands(model.graph, kept)
    return kept


def _unable(node: ir.Node, opset: int, half: Half) -> str:
    import onnx_ir as ir

    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        return "its body is a graph of its own"
    if node.op_type in _TYPE_IS_ATTRIBUTE:
        return "its type is an attribute"
    accepted = accepts(node, opset, half)
    if accepted is None:
        return "no operator of ONNX's own: its types are unknown"
    inputs, outputs = accepted
    if not any(inputs + outputs) or any(is_float(v) and not ok for v, ok in zip(node.outputs, outputs, strict=True)):
        return f"the operator has no {half.name.upper()} form"
    if node.op_type == "LayerNormalization" and any(is_float(value) for value in node.outputs[1:]):
        return "its statistics are FP32 outputs"
    return ""


def _index_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes between a cast from integers and a cast to integers: positions, where 2049 must not become 2048."""
    import onnx_ir as ir

    casts = [node for node in graph if node.op_type == "Cast"]
    floats = [node for node in casts if node.outputs[0].dtype == ir.DataType.FLOAT and not is_float(node.inputs[0])]
    whole = (ir.DataType.INT64, ir.DataType.INT32)
    ints = [node for node in casts if is_float(node.inputs[0]) and node.outputs[0].dtype in whole]
    forward = _reach(floats, lambda node: node.successors())
    return forward & _reach(ints, lambda node: node.predecessors())


def _reach(start: Iterable[ir.Node], step: Callable[[ir.Node], Iterable[ir.Node]]) -> set[ir.Node]:
    # Only through what positions are computed with: a picture that was cast from integers, and a class number that is
    # cast to one at the end, do not make positions of the network between them.
    todo = list(start)
    seen = set(todo)
    while todo:
        for node in step(todo.pop()):
            floating = any(is_float(value) for value in [*node.inputs, *node.outputs])
            if node not in seen and floating and node.op_type in _INDEX_ARITHMETIC:
                seen.add(node)
                todo.append(node)
    return seen


def _vanishing(node: ir.Node, half: Half) -> float | None:
    """A constant of the node all of which, or a scale any of which, rounds to 0 in `half`; None without one."""
    scales = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    for value in node.inputs:
        array = constant(value)
        if array is None or not is_float(value):
            continue
        sizes = np.abs(array[array != 0])
        # Half of the smallest positive value is a tie, which rounds to the even neighbour: to 0.
        if sizes.size and (sizes.min() if scales else sizes.max()) <= half.tiny / 2:
            return float(sizes.min())
    return None


def _constant_out_of_range(node: ir.Node, half: Half) -> str:
    for value in node.inputs:
        array = constant(value)
        if array is None or not is_float(value):
            continue
        magnitude = np.abs(array[np.isfinite(array)])
        real = magnitude[magnitude < INFINITY_STAND_IN]
        if real.size and real.max() > half.max:
            return f"its constant reaches {real.max():.3g}, {half.name.upper()} ends at {half.max:.5g}"
    small = _vanishing(node, half)
    return "" if small is None else f"its constant {small:.3g} would become 0 in {half.name.upper()}"


def _guarded_divisions(graph: ir.Graph, half: Half) -> set[ir.Node]:
    """Divisions by `x + 1e-12`, `max(x, 1e-12)` and their roots: once the sum is 16-bit it may be 0 after all."""
    small = [node for node in float_nodes(graph) if node.op_type in _GUARDS and _vanishing(node, half) is not None]
    passed, divisions = set(small), set()
    while small:
        node = small.pop()
        inverse = node.op_type in ("Reciprocal", "Pow")  # 1 / 1e-6 leaves FP16 too: its factor belongs to the division
        for value in node.outputs:
            for reader, index in value.uses():
                if (
                    reader.op_type == "Log"
                    or (reader.op_type, index) == ("Div", 1)
                    or (reader.op_type == "Mul" and inverse)
                ):
                    divisions.add(reader)
                elif reader.op_type in _SMALL_STAYS_SMALL and reader not in passed:
                    passed.add(reader)
                    small.append(reader)
    between = list(divisions)
    while between:
        for node in between.pop().predecessors():
            if node in passed and node not in divisions:
                divisions.add(node)
                between.append(node)
    return divisions


def _activation_out_of_range(node: ir.Node, half: Half, ranges: Mapping[str, float]) -> str:
    for value in [*node.outputs, *node.inputs]:
        seen = ranges.get(value.name or "", 0.0) if value is not None else 0.0
        if value is None or not is_float(value):
            continue
        if seen * RANGE_MARGIN > half.max:
            return f"{value.name} reaches {seen:.3g}, {half.name.upper()} ends at {half.max:.5g}"
        if 0 < seen < STEPS * half.tiny:
            return f"{value.name} reaches only {seen:.3g}, {half.name.upper()} has steps of {half.tiny:.3g}"
    return ""


def _weight_out_of_range(node: ir.Node, half: Half) -> str:
    for value in node.inputs if node.op_type in _WEIGHTED else ():
        array = constant(value)
        if array is None or array.ndim < 2 or not is_float(value):
            continue
        largest = float(np.abs(array).max(initial=0.0))
        if 0 < largest < STEPS * half.tiny:
            return f"its weight reaches only {largest:.3g}, {half.name.upper()} has steps of {half.tiny:.3g}"
    return ""


def _sum_out_of_range(node: ir.Node, half: Half, ranges: Mapping[str, float], sizes: Mapping[str, int]) -> str:
    """A sum inside the operator that is known to overflow: |mean| times the number of terms, or a norm squared."""
    seen = ranges.get(node.outputs[0].name or "", 0.0)
    if node.op_type == "ReduceL2":
        total, of = seen**2, "norm"
    elif node.op_type in _AVERAGES:
        total, of = seen * _terms(node, sizes), "mean"
    else:
        return ""
    if total <= half.max:
        return ""
    return f"the sum behind its {of} reaches {total:.3g}, {half.name.upper()} ends at {half.max:.5g}"


def _terms(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """How many numbers each result of a reduction sums up: as observed, else by the shapes, dynamic sizes being 1."""
    value, result = node.inputs[0], node.outputs[0]
    read, given = sizes.get((value and value.name) or "", 0), sizes.get(result.name or "", 0)
    if read and given:
        return read / given
    before, after = dims(value), dims(result)
    if before is None or after is None:
        return 1.0
    return float(np.prod([dim or 1 for dim in before]) / np.prod([dim or 1 for dim in after]))


def _fill_islands(graph: ir.Graph, kept: dict[ir.Node, str]) -> None:
    """Keep a small node whose neighbours are all kept: in a lower precision it would only add casts on either side."""
    changed = True
    while changed:
        changed = False
        for node in float_nodes(graph):
            around = [*node.predecessors(), *node.successors()]
            island = around and all(neighbour in kept for neighbour in around)
            if node not in kept and island and node.op_type not in _WEIGHTED:
                kept[node] = "all its neighbours stay in FP32"
                changed = True
