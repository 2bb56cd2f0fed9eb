"""Sixteen-bit floating point by explicit casts: how they are written. What must stay in FP32 is decided in `keep`.

An ONNX node has one type for all the tensors that its schema calls T, so the unit of decision is the node. Casts stand
where a tensor passes from a node of one type to a node of the other, one for each tensor and type, right behind the
tensor's producer. Graph inputs and outputs keep their type.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.precision.graph import (
    FLOAT_COMPUTE_FREE,
    add_initializer,
    cast,
    constant,
    drop_unused_initializers,
    float_nodes,
    is_float,
    names,
    unique,
)
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

ASKED_FOR = "asked for"
"""The reason of a node that is as the user wanted it."""

INFINITY_STAND_IN = 1e9
"""A constant at least this large (-1e9, -3.4e38) is a mask's stand-in for infinity, not a quantity: it is clamped."""


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


def convert(model: ir.Model, half: Half, kept: Mapping[ir.Node, str]) -> tuple[Decision, ...]:
    """Write the casts in place: every floating-point node but those of `kept` computes in `half`.

    Returns a decision for each node that does arithmetic.
    """
    graph, opset = model.graph, model.opset_imports.get("", 1)
    nodes = list(float_nodes(graph))
    halved = [node for node in nodes if node not in kept]
    rewrite = _Rewrite(
        graph=graph,
        half=half,
        taken=names(graph),
        results={value for node in halved for value in node.outputs if is_float(value)},
        takes={node: accepted[0] for node in halved if (accepted := accepts(node, opset, half))},
    )
    notes = {node: _clamp_note(node, half) for node in halved}
    values = [value for node in nodes for value in node.inputs if value is not None and is_float(value)]
    values += [value for node in nodes for value in node.outputs if is_float(value)]
    values += [v for inner in graph.subgraphs() for node in inner for v in node.inputs if v is not None and is_float(v)]
    for value in dict.fromkeys(values):
        _retype(rewrite, value)
    for node in halved:
        _retype_attributes(node, half)
    drop_unused_initializers(graph)
    return tuple(
        Decision(
            node=node.name or "",
            op=node.op_type,
            precision="fp32" if node in kept else half.name,
            reason=kept.get(node) or notes[node] or ASKED_FOR,
        )
        for node in nodes
        if node.op_type not in FLOAT_COMPUTE_FREE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewrite:
    """What writing the casts needs to know: which values become 16-bit, and which inputs of a node take them."""

    graph: ir.Graph
    half: Half
    taken: set[str]
    results: set[ir.Value]
    takes: Mapping[ir.Node, list[bool]]


def _retype(rewrite: _Rewrite, value: ir.Value) -> None:
    """Give every consumer of one float32 value the type that it wants."""
    import onnx_ir as ir

    graph, half, takes = rewrite.graph, rewrite.half, rewrite.takes
    low = [use for use in value.uses() if use.node in takes and takes[use.node][use.idx] and use.node.op_type != "Cast"]
    high = [use for use in value.uses() if use not in low and use.node.op_type != "Cast"]
    array = constant(value)
    if array is not None:
        if low:
            name = unique(f"{value.name}_{half.name}", rewrite.taken)
            _redirect(low, add_initializer(graph, name, to_half(array, half), half.dtype))
    elif value in rewrite.results:
        value.type = ir.TensorType(half.dtype)
        name = value.name or ""
        if value.is_graph_output():
            value.name = unique(f"{name}_{half.name}", rewrite.taken)
            result = cast(graph, value, ir.DataType.FLOAT, name, rewrite.taken)
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = result
            _redirect(high, result)
        elif high:
            wide = unique(f"{name}_fp32", rewrite.taken)
            _redirect(high, cast(graph, value, ir.DataType.FLOAT, wide, rewrite.taken))
    elif low:
        narrow = unique(f"{value.name}_{half.name}", rewrite.taken)
        _redirect(low, cast(graph, value, half.dtype, narrow, rewrite.taken))


def _redirect(uses: Sequence[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)


def _retype_attributes(node: ir.Node, half: Half) -> None:
    import onnx_ir as ir

    if node.op_type == "Cast" and node.outputs[0].dtype == half.dtype:
        node.attributes["to"] = ir.AttrInt64("to", int(half.dtype))
    if node.op_type == "ConstantOfShape":
        array = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(to_half(array, half), dtype=half.dtype))


def to_half(array: npt.NDArray[np.generic], half: Half) -> npt.NDArray[np.generic]:
    """Round to nearest even; a stand-in for infinity beyond the range becomes half of the largest finite number.

    Half, so that a score added to a mask of -65504 does not reach minus infinity: a row of nothing else is NaN after a
    softmax.
    """
    import ml_dtypes

    floats = np.asarray(array, np.float32)
    stands = np.isfinite(floats) & (np.abs(floats) >= max(INFINITY_STAND_IN, half.max))
    clipped = np.where(stands, np.sign(floats) * half.max / 2, floats)
    clipped = np.where(np.isfinite(clipped), np.clip(clipped, -half.max, half.max), clipped)
    return clipped.astype(np.float16 if half is FP16 else ml_dtypes.bfloat16)


def accepts(node: ir.Node, opset: int, half: Half) -> tuple[list[bool], list[bool]] | None:
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


def _clamp_note(node: ir.Node, half: Half) -> str:
    for value in node.inputs:
        array = constant(value)
        if array is not None and is_float(value):
            finite = array[np.isfinite(array)]
            if finite.size and np.abs(finite).max() >= max(INFINITY_STAND_IN, half.max):
                extreme = finite[np.abs(finite).argmax()]
                return (
                    f"its constant {extreme:.3g} stands for infinity and becomes {np.sign(extreme) * half.max / 2:.5g}"
                )
    return ""
