"""Conversion to a 16-bit floating-point type by explicit casts. Which nodes must stay in FP32 is decided in `keep`.

An ONNX node has one type for all tensors that its schema calls T, so precision is decided per node. Where a tensor
passes from a node of one type to a node of the other, a Cast is inserted: one per tensor and type, directly after the
tensor's producer. Graph inputs and outputs keep their types.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.formats import Format
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
from trtopt.precision.passes import bodies
from trtopt.precision.passes.masks import MASK, extreme
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

REQUESTED = "requested"
"""The reason given for a node that has the precision that the user requested."""


def convert(
    model: ir.Model, half: Format, kept: Mapping[ir.Node, str], masks: Mapping[str, float] = MappingProxyType({})
) -> tuple[Decision, ...]:
    """Insert the casts in place, so that every floating-point node computes in `half`, except those in `kept`.

    Args:
        model: the FP32 model.
        half: the 16-bit type.
        kept: the nodes that stay in FP32, each with the reason.
        masks: the largest magnitude that means infinity, by tensor. It is clamped, as in constants.

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
        masks={name for name, magnitude in masks.items() if magnitude > half.max},
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
    ) + bodies.decisions(graph)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewrite:
    """The state of a conversion.

    `taken` are the names in use, `results` the outputs of 16-bit nodes, and `supports` says for each input of a 16-bit
    node whether the operator supports the 16-bit type there. `masks` are the tensors that the type cannot represent.
    """

    graph: ir.Graph
    half: Format
    taken: set[str]
    results: set[ir.Value]
    supports: Mapping[ir.Node, list[bool]]
    masks: set[str]


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
        clamped = _clamp(rewrite, value) if value.name in rewrite.masks else value
        _redirect(low, cast(graph, clamped, half.dtype, narrow, rewrite.taken))


def _clamp(rewrite: _Rewrite, value: ir.Value) -> ir.Value:
    """Insert a Clip after a float32 value, to the numbers that mean infinity in 16 bits (see `to_half`)."""
    import onnx_ir as ir

    graph, limit = rewrite.graph, rewrite.half.max / 2
    bounds = [
        add_initializer(graph, unique(f"{value.name}/{name}", rewrite.taken), np.float32(bound), ir.DataType.FLOAT)
        for name, bound in (("least", -limit), ("most", limit))
    ]
    result = ir.Value(name=unique(f"{value.name}/clamped", rewrite.taken), type=value.type, shape=value.shape)
    node = ir.node("Clip", [value, *bounds], outputs=[result], name=unique(f"{value.name}/Clip", rewrite.taken))
    source = value.producer()
    if source is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(source, node)
    return result


def _redirect(uses: Sequence[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)


def _retype_attributes(node: ir.Node, half: Format) -> None:
    """Change the type of the output where it is set by an attribute: the target of a Cast, the value of a fill."""
    import onnx_ir as ir

    if node.op_type == "Cast" and node.outputs[0].dtype == half.dtype:
        node.attributes["to"] = ir.AttrInt64("to", int(half.dtype))
    if node.op_type == "ConstantOfShape":
        array = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(to_half(array, half), dtype=half.dtype))


def to_half(array: npt.NDArray[np.generic], half: Format) -> npt.NDArray[np.generic]:
    """Return the array in the 16-bit type, rounded to nearest even.

    A mask's infinity beyond the type's range becomes half of its largest number: -32752 in FP16. Were it -65504, adding
    a negative score to it could overflow to minus infinity, and the softmax of a row that is all minus infinity is NaN.
    """
    floats = np.asarray(array, np.float32)
    is_mask = np.isfinite(floats) & (np.abs(floats) >= max(MASK, half.max))
    clipped = np.where(is_mask, np.sign(floats) * half.max / 2, floats)
    # Infinities and NaN of the model stay what they are.
    clipped = np.where(np.isfinite(clipped), np.clip(clipped, -half.max, half.max), clipped)
    return clipped.astype(half.numpy)


def supports(node: ir.Node, opset: int, half: Format) -> tuple[list[bool], list[bool]] | None:
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


def _clamp_note(node: ir.Node, half: Format) -> str:
    """Return the note on a mask constant that `to_half` clamps; empty if there is none."""
    for number in map(extreme, node.inputs):
        if number and abs(number) >= half.max:
            return f"its mask constant {number:.3g} is clamped to {np.sign(number) * half.max / 2:.5g}"
    return ""
