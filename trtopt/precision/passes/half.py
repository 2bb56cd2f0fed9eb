"""Conversion to a 16-bit floating-point type by explicit casts. Which nodes must stay in FP32 is decided in `keep`.

An ONNX node has one type for all tensors that its schema calls T, so precision is decided per node. Where a tensor
passes from a node of one type to a node of the other, a Cast is inserted: one per tensor and type, directly after the
tensor's producer. Graph inputs and outputs keep their types.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.graph.query import (
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

REQUESTED = "requested"
"""The reason given for a node that has the precision that the user requested."""

INFINITY_STAND_IN = 1e9
"""A constant of at least this magnitude (-1e9, -3.4e38) is taken for a mask's infinity, and clamped to the range."""


@dataclass(frozen=True, slots=True)
class Half:
    """A 16-bit type: its `--precision` name, its name in onnx-ir, its largest value and its smallest positive value."""

    name: str
    ir_name: str
    max: float
    tiny: float

    @property
    def dtype(self) -> ir.DataType:
        """The onnx-ir data type."""
        import onnx_ir as ir

        return ir.DataType[self.ir_name]


FP16 = Half("fp16", "FLOAT16", 65504.0, 2.0**-24)  # IEEE 754 binary16
BF16 = Half("bf16", "BFLOAT16", 3.3895313892515355e38, 9.2e-41)

HALVES = {half.name: half for half in (FP16, BF16)}


def convert(model: ir.Model, half: Half, kept: Mapping[ir.Node, str]) -> tuple[Decision, ...]:
    """Insert the casts in place, so that every floating-point node computes in `half`, except those in `kept`.

    Args:
        model: the FP32 model.
        half: the 16-bit type.
        kept: the nodes that stay in FP32, each with the reason.

    Returns:
        A decision for each node that does arithmetic.
    """
    graph, opset = model.graph, model.opset_imports.get("", 1)
    nodes = list(float_nodes(graph))
    halved = [node for node in nodes if node not in kept]
    rewrite = _Rewrite(
        graph=graph,
        half=half,
        taken=names(graph),
        results={value for node in halved for value in node.outputs if is_float(value)},
        supports={node: supported[0] for node in halved if (supported := supports(node, opset, half))},
    )
    notes = {node: _clamp_note(node, half) for node in halved}
    values = [value for node in nodes for value in node.inputs if value is not None and is_float(value)]
    values += [value for node in nodes for value in node.outputs if is_float(value)]
    # Subgraphs stay in FP32: the tensors that they read from the main graph must be cast back.
    for subgraph in graph.subgraphs():
        values += [value for node in subgraph for value in node.inputs if value is not None and is_float(value)]
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
            reason=kept.get(node) or notes[node] or REQUESTED,
        )
        for node in nodes
        if node.op_type not in FLOAT_COMPUTE_FREE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewrite:
    """The state of a conversion.

    `taken` are the names in use, `results` the outputs of 16-bit nodes, and `supports` says for each input of a 16-bit
    node whether the operator supports the 16-bit type there.
    """

    graph: ir.Graph
    half: Half
    taken: set[str]
    results: set[ir.Value]
    supports: Mapping[ir.Node, list[bool]]


def _retype(rewrite: _Rewrite, value: ir.Value) -> None:
    """Connect every consumer of a float32 value to the value in the type that the consumer reads."""
    import onnx_ir as ir

    graph, half, supported = rewrite.graph, rewrite.half, rewrite.supports
    # A Cast of the model reads either type, so its input needs no cast of ours.
    uses = [use for use in value.uses() if use.node.op_type != "Cast"]
    low = [use for use in uses if use.node in supported and supported[use.node][use.idx]]
    high = [use for use in uses if use not in low]
    array = constant(value)
    if array is not None:
        # A constant is converted here, not by a Cast at run time. The FP32 copy stays for FP32 consumers.
        if low:
            name = unique(f"{value.name}_{half.name}", rewrite.taken)
            _redirect(low, add_initializer(graph, name, to_half(array, half), half.dtype))
    elif value in rewrite.results:
        value.type = ir.TensorType(half.dtype)
        name = value.name or ""
        if value.is_graph_output():
            # The FP32 copy becomes the graph output and takes its name; FP32 consumers share it.
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
        # A graph input, or the result of an FP32 node.
        narrow = unique(f"{value.name}_{half.name}", rewrite.taken)
        _redirect(low, cast(graph, value, half.dtype, narrow, rewrite.taken))


def _redirect(uses: Sequence[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)


def _retype_attributes(node: ir.Node, half: Half) -> None:
    """Change the type of the output where it is set by an attribute: the target of a Cast, the value of a fill."""
    import onnx_ir as ir

    if node.op_type == "Cast" and node.outputs[0].dtype == half.dtype:
        node.attributes["to"] = ir.AttrInt64("to", int(half.dtype))
    if node.op_type == "ConstantOfShape":
        array = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(to_half(array, half), dtype=half.dtype))


def to_half(array: npt.NDArray[np.generic], half: Half) -> npt.NDArray[np.generic]:
    """Return the array in the 16-bit type, rounded to nearest even.

    A mask's infinity beyond the type's range becomes half of its largest number: -32752 in FP16. Were it -65504, adding
    a negative score to it could overflow to minus infinity, and the softmax of a row that is all minus infinity is NaN.
    """
    import ml_dtypes

    floats = np.asarray(array, np.float32)
    is_mask = np.isfinite(floats) & (np.abs(floats) >= max(INFINITY_STAND_IN, half.max))
    clipped = np.where(is_mask, np.sign(floats) * half.max / 2, floats)
    # Infinities and NaN of the model stay what they are.
    clipped = np.where(np.isfinite(clipped), np.clip(clipped, -half.max, half.max), clipped)
    return clipped.astype(np.float16 if half is FP16 else ml_dtypes.bfloat16)


def supports(node: ir.Node, opset: int, half: Half) -> tuple[list[bool], list[bool]] | None:
    """Return for each input, and each output, whether the operator's schema allows the type there.

    Only float32 tensors count. Returns None for an operator without an ONNX schema.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    half_type = f"tensor({half.ir_name.lower()})"
    allowed_types = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

    def allowed(formals: list[onnx.defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]) -> list[bool]:
        result = []
        for index, value in enumerate(values):
            # The last formal parameter may be variadic. Its type is a variable such as T, or a type itself.
            type_str = formals[min(index, len(formals) - 1)].type_str
            result.append(is_float(value) and half_type in allowed_types.get(type_str, [type_str]))
        return result

    return allowed(list(schema.inputs), node.inputs), allowed(list(schema.outputs), node.outputs)


def _clamp_note(node: ir.Node, half: Half) -> str:
    """Return the note on a mask constant that `to_half` clamps; empty if there is none."""
    for value in node.inputs:
        array = constant(value)
        if array is not None and is_float(value):
            finite = array[np.isfinite(array)]
            if finite.size and np.abs(finite).max() >= max(INFINITY_STAND_IN, half.max):
                extreme = finite[np.abs(finite).argmax()]
                return f"its mask constant {extreme:.3g} is clamped to {np.sign(extreme) * half.max / 2:.5g}"
    return ""
