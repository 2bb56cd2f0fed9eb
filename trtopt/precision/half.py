"""Sixteen-bit floating point by explicit casts: what must stay in FP32, and how the casts are written.

An ONNX node has one type for all the tensors that its schema calls T, so the unit of decision is the node. Casts stand
where a tensor passes from a node of one type to a node of the other, one for each tensor and type, right behind the
tensor's producer. Graph inputs and outputs keep their type.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.precision.graph import (
    FLOAT_COMPUTE_FREE,
    add_initializer,
    constant,
    dims,
    drop_unused_initializers,
    float_nodes,
    is_float,
)
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

INFINITY_STAND_IN = 1e9
"""A constant at least this large (-1e9, -3.4e38) is a mask's stand-in for infinity, not a quantity: it is clamped."""

RANGE_MARGIN = 2.0
"""A tensor stays in FP32 when `RANGE_MARGIN` times its largest observed magnitude leaves the type's range: the samples
observed are not all the samples that will come."""

_AVERAGES = frozenset({"ReduceMean", "GlobalAveragePool"})
_TYPE_IS_ATTRIBUTE = frozenset(
    "CastLike EyeLike RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial "
    "HannWindow HammingWindow BlackmanWindow MelWeightMatrix".split()
)


@dataclass(frozen=True, slots=True)
class Half:
    """A 16-bit type: its `--precision` name, onnx-ir's name of it, its largest and its smallest positive value."""

    name: str
    ir_name: str
    max: float
    tiny: float

    @property
    def dtype(self) -> ir.DataType:
        """The type as onnx-ir knows it."""
        import onnx_ir as ir

        return ir.DataType[self.ir_name]


FP16 = Half("fp16", "FLOAT16", 65504.0, 2.0**-24)  # IEEE 754 binary16
BF16 = Half("bf16", "BFLOAT16", 3.3895313892515355e38, 9.2e-41)

HALVES = {half.name: half for half in (FP16, BF16)}


def keep(model: ir.Model, half: Half, ranges: Mapping[str, float]) -> dict[ir.Node, str]:
    """Return the floating-point nodes that must stay in FP32, each with the reason.

    `ranges[t]` is the largest magnitude observed in tensor t; tensors without an entry are trusted.
    """
    opset = model.opset_imports.get("", 1)
    index_nodes = _index_nodes(model.graph)
    kept: dict[ir.Node, str] = {}
    for node in float_nodes(model.graph):
        reason = (
            _unable(node, opset, half)
            or ("computes positions or sizes" if node in index_nodes else "")
            or _constant_out_of_range(node, half)
            or _activation_out_of_range(node, half, ranges)
            or _sum_out_of_range(node, half, ranges)
        )
        if reason:
            kept[node] = reason
    _fill_islands(model.graph, kept)
    return kept


def convert(model: ir.Model, half: Half, kept: Mapping[ir.Node, str]) -> tuple[Decision, ...]:
    """Write the casts in place: every floating-point node but those of `kept` computes in `half`.

    Returns a decision for each node that does arithmetic.
    """
    graph, opset = model.graph, model.opset_imports.get("", 1)
    nodes = list(float_nodes(graph))
    halved = [node for node in nodes if node not in kept]
    takes = {node: accepted[0] for node in halved if (accepted := _accepts(node, opset, half))}
    notes = {node: _clamp_note(node, half) for node in halved}
    values = [value for node in nodes for value in node.inputs if value is not None and is_float(value)]
    values += [value for node in nodes for value in node.outputs if is_float(value)]
    values += [v for inner in graph.subgraphs() for node in inner for v in node.inputs if v is not None and is_float(v)]
    results = {value for node in halved for value in node.outputs if is_float(value)}
    for value in dict.fromkeys(values):
        if value.graph is graph:  # a value of an inner graph stays in that graph's type
            _retype(graph, value, half, results, takes)
    for node in halved:
        _retype_attributes(node, half)
    drop_unused_initializers(graph)
    return tuple(
        Decision(
            node=node.name or "",
            op=node.op_type,
            precision="fp32" if node in kept else half.name,
            reason=kept.get(node) or notes[node] or "asked for",
        )
        for node in nodes
        if node.op_type not in FLOAT_COMPUTE_FREE
    )


def _retype(
    graph: ir.Graph, value: ir.Value, half: Half, results: set[ir.Value], takes: Mapping[ir.Node, list[bool]]
) -> None:
    """Give every consumer of one float32 value the type that it wants."""
    import onnx_ir as ir

    low = [use for use in value.uses() if use.node in takes and takes[use.node][use.idx] and use.node.op_type != "Cast"]
    high = [use for use in value.uses() if use not in low and use.node.op_type != "Cast"]
    array = constant(value)
    if array is not None:
        if low:
            number = add_initializer(graph, f"{value.name}_{half.name}", _to_half(array, half), half.dtype)
            for use in low:
                use.node.replace_input_with(use.idx, number)
    elif value in results:
        value.type = ir.TensorType(half.dtype)
        name = value.name
        if value.is_graph_output():
            value.name = f"{name}_{half.name}"
            result = _cast(graph, value, ir.DataType.FLOAT, name)
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = result
        elif high:
            result = _cast(graph, value, ir.DataType.FLOAT, f"{name}_fp32")
        for use in high:
            use.node.replace_input_with(use.idx, result)
    elif low:
        result = _cast(graph, value, half.dtype, f"{value.name}_{half.name}")
        for use in low:
            use.node.replace_input_with(use.idx, result)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, name: str | None) -> ir.Value:
    import onnx_ir as ir

    result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    node = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[result], name=f"{name}/Cast")
    source = value.producer()
    if source is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(source, node)
    return result


def _retype_attributes(node: ir.Node, half: Half) -> None:
    import onnx_ir as ir

    if node.op_type == "Cast" and node.outputs[0].dtype == half.dtype:
        node.attributes["to"] = ir.AttrInt64("to", int(half.dtype))
    if node.op_type == "ConstantOfShape":
        array = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(_to_half(array, half), dtype=half.dtype))


def _to_half(array: npt.NDArray[np.generic], half: Half) -> npt.NDArray[np.generic]:
    """Round to nearest even; a finite value beyond the range (a stand-in for infinity) becomes the largest finite."""
    import ml_dtypes

    floats = np.asarray(array, np.float32)
    clipped = np.where(np.isfinite(floats), np.clip(floats, -half.max, half.max), floats)
    return clipped.astype(np.float16 if half is FP16 else ml_dtypes.bfloat16)


def _accepts(node: ir.Node, opset: int, half: Half) -> tuple[list[bool], list[bool]] | None:
    """For each input and output, whether the operator's schema takes the type there; None without a schema."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    wanted = f"tensor({half.ir_name.lower()})"
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

    def accept(formals: list[onnx.defs.OpSchema.FormalParameter], count: int) -> list[bool]:
        kinds = [formals[min(index, len(formals) - 1)].type_str for index in range(count)]  # the last may be variadic
        return [wanted in allowed.get(kind, [kind]) for kind in kinds]

    inputs = zip(accept(list(schema.inputs), len(node.inputs)), node.inputs, strict=True)
    outputs = zip(accept(list(schema.outputs), len(node.outputs)), node.outputs, strict=True)
    return [ok and is_float(v) for ok, v in inputs], [ok and is_float(v) for ok, v in outputs]


def _unable(node: ir.Node, opset: int, half: Half) -> str:
    import onnx_ir as ir

    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        return "its body is a graph of its own"
    if node.op_type in _TYPE_IS_ATTRIBUTE:
        return "its type is an attribute"
    accepted = _accepts(node, opset, half)
    if accepted is None:
        return "no operator of ONNX's own: its types are unknown"
    if any(is_float(value) and not ok for value, ok in zip(node.outputs, accepted[1], strict=True)):
        return f"the operator has no {half.name.upper()} form"
    return ""


def _index_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes between a cast from integers and a cast to integers: positions, where 2049 must not become 2048."""
    import onnx_ir as ir

    casts = [node for node in graph if node.op_type == "Cast"]
    floats = {node for node in casts if node.outputs[0].dtype == ir.DataType.FLOAT and not is_float(node.inputs[0])}
    whole = (ir.DataType.INT64, ir.DataType.INT32)
    ints = {node for node in casts if is_float(node.inputs[0]) and node.outputs[0].dtype in whole}
    forward = _reach(floats, lambda node: node.successors())
    backward = _reach(ints, lambda node: node.predecessors())
    return forward & backward


def _reach(start: set[ir.Node], step) -> set[ir.Node]:  # type: ignore[no-untyped-def]
    seen, todo = set(start), list(start)
    while todo:
        for node in step(todo.pop()):
            if node not in seen and any(is_float(value) for value in [*node.inputs, *node.outputs]):
                seen.add(node)
                todo.append(node)
    return seen


def _constant_out_of_range(node: ir.Node, half: Half) -> str:
    for value in node.inputs:
        array = constant(value)
        if array is None or not is_float(value) or array.size == 0:
            continue
        magnitude = np.abs(array[np.isfinite(array)])
        real = magnitude[magnitude < INFINITY_STAND_IN]
        if real.size and real.max() > half.max:
            return f"its constant reaches {real.max():.3g}, {half.name.upper()} ends at {half.max:.5g}"
        if array.size == 1 and 0 < magnitude.max(initial=0) < half.tiny / 2:
            return f"its constant {float(array.reshape(-1)[0]):.3g} would become 0 in {half.name.upper()}"
    return ""


def _clamp_note(node: ir.Node, half: Half) -> str:
    for value in node.inputs:
        array = constant(value)
        if array is not None and is_float(value) and array.size and half is FP16:
            finite = array[np.isfinite(array)]
            if finite.size and np.abs(finite).max() >= INFINITY_STAND_IN:
                extreme = finite[np.abs(finite).argmax()]
                return f"its constant {extreme:.3g} stands for infinity and becomes {np.sign(extreme) * half.max:.5g}"
    return ""


def _activation_out_of_range(node: ir.Node, half: Half, ranges: Mapping[str, float]) -> str:
    for value in [*node.outputs, *node.inputs]:
        seen = ranges.get(value.name or "", 0.0) if value is not None else 0.0
        if value is not None and seen * RANGE_MARGIN > half.max and is_float(value):
            return f"{value.name} reaches {seen:.3g}, {half.name.upper()} ends at {half.max:.5g}"
    return ""


def _sum_out_of_range(node: ir.Node, half: Half, ranges: Mapping[str, float]) -> str:
    """An average whose sum is known to overflow: |mean| times the number of terms was observed beyond the range."""
    if node.op_type not in _AVERAGES:
        return ""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None or None in before[1:] or None in after[1:]:
        return ""
    terms = np.prod([d or 1 for d in before[1:]]) / np.prod([d or 1 for d in after[1:]])
    total = ranges.get(node.outputs[0].name or "", 0.0) * float(terms)
    if total > half.max:
        return f"the sum behind its mean reaches {total:.3g}, {half.name.upper()} ends at {half.max:.5g}"
    return ""


def _fill_islands(graph: ir.Graph, kept: dict[ir.Node, str]) -> None:
    """Keep a node whose neighbours are all kept: in a lower precision it would only add casts on either side."""
    changed = True
    while changed:
        changed = False
        for node in float_nodes(graph):
            around = [*node.predecessors(), *node.successors()]
            if node not in kept and around and all(neighbour in kept for neighbour in around):
                kept[node] = "all its neighbours stay in FP32"
                changed = True
