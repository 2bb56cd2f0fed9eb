"""Weakly typed networks of TensorRT 8.5 and 8.6: the decisions of a typed graph as flags and constraints on layers.

These versions have no strongly typed networks. They parse the graph in FP32, with its Q/DQ pairs; FP16 and INT8 are
flags for the whole network; and a layer that must stay in FP32 beside FP16 is constrained (TensorRT 8.5 developer
guide, "Reduced Precision").

Touches: writes the FP32 form of the graph into the folder that it is given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtopt.engine.trt.locate import TensorRT
from trtopt.errors import AuditError, UsageError
from trtopt.events import Emit, Warned
from trtopt.types import Decision, TypedModel
from trtopt.wording import counted

if TYPE_CHECKING:
    import onnx_ir as ir

_SHOWN = 4
_SMALLEST_DIVIDED = 2.0**-15
"""The smallest factor whose reciprocal FP16 holds with room to spare."""
_UNCONSTRAINED = frozenset({"CONSTANT", "SHAPE", "QUANTIZE", "DEQUANTIZE"})
"""Layers without arithmetic of their own; TensorRT refuses a precision for some of them."""


def check_precision(trt: TensorRT, typed: TypedModel) -> None:
    """Raise UsageError for a precision that this TensorRT does not have."""
    for flag, name in (("--precision", typed.precision), ("--rest", typed.rest)):
        if name not in trt.can.precisions:
            raise UsageError(
                f"{trt.title} does not have {flag} {name}",
                why="it came with TensorRT 10",
                fix=f"Choose one of {', '.join(sorted(trt.can.precisions))}, or use a later TensorRT",
            )


def write_widened(path: Path, folder: Path, opset: int) -> Path:
    """Write the FP32 form of a typed graph, in at most that opset, to `folder`, and return its path.

    All 16-bit tensors but inputs and outputs become float32. The numbers stay as they are: constants and scales that
    were rounded to 16 bits keep the rounded values.

    Raises:
        ModelError: a node has no form in that opset.
    """
    from trtopt.graph.file import load_ir
    from trtopt.graph.older import lower_opset
    from trtopt.graph.portable import undo
    from trtopt.graph.prepare import infer_shapes, save
    from trtopt.graph.widen import drop_casts, widen

    model = load_ir(path)
    infer_shapes(model)  # which infers the types of tensors, too
    undo(model)
    widen(model)
    drop_casts(model.graph)
    for node in model.graph.all_nodes():
        _name_kernel_shape(node)
    for node in model.graph:
        _divide(node)
    lower_opset(model, opset)
    target = folder / "weak.onnx"
    save(model, target)
    return target


def _name_kernel_shape(node: ir.Node) -> None:
    """Write the kernel's shape as an attribute, which is optional in ONNX.

    The parser of TensorRT 8.5 does not find it in a weight behind a DequantizeLinear.
    """
    import onnx_ir as ir

    weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") else None
    if weight is None or weight.shape is None or "kernel_shape" in node.attributes:
        return
    sizes = [size for size in weight.shape[2:] if isinstance(size, int)]
    if len(sizes) == len(weight.shape) - 2:
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", sizes)


def _divide(node: ir.Node) -> None:
    """Write a Mul by one factor per channel before a QuantizeLinear as a Div by the reciprocals.

    TensorRT 8.5 makes a Scale layer of such a Mul, and can fail to merge it with the quantization ("mergeScales"), as
    with one that equalization inserted into a text detector. Written as a Div, it got past that point.
    """
    from trtopt.graph.query import add_initializer, constant, names, unique

    if node.op_type != "Mul" or not any(use.node.op_type == "QuantizeLinear" for use in node.outputs[0].uses()):
        return
    for index, value in enumerate(node.inputs):
        factors = constant(value)
        if factors is None or factors.size == 1 or factors.size > max(factors.shape):
            continue
        if np.abs(factors).min() < _SMALLEST_DIVIDED:
            continue
        assert value is not None
        assert value.dtype is not None
        assert node.graph is not None
        name = unique(f"{value.name}/reciprocal", names(node.graph))
        divisor = add_initializer(node.graph, name, np.reciprocal(np.asarray(factors, np.float32)), value.dtype)
        node.op_type = "Div"
        node.replace_input_with(0, node.inputs[1 - index])
        node.replace_input_with(1, divisor)
        return


def constrain(trt: TensorRT, config: Any, typed: TypedModel, nodes: Mapping[str, list[Any]]) -> None:
    """Set the flags and the constraints on layers that express the decisions of `typed`.

    Args:
        trt: the TensorRT package.
        config: the builder configuration.
        typed: the decisions.
        nodes: the layers of each node by its name.
    """
    module = trt.module
    precisions = {decision.precision for decision in typed.decisions}
    if "int8" in precisions:
        config.set_flag(module.BuilderFlag.INT8)
    if "fp16" in precisions or any(spec.dtype == "float16" for spec in (*typed.onnx.inputs, *typed.onnx.outputs)):
        config.set_flag(module.BuilderFlag.FP16)
        kept = [layer for d in typed.decisions if d.precision == "fp32" for layer in nodes.get(d.node, [])]
        producers = {
            layer.get_output(i).name: layer
            for layers in nodes.values()
            for layer in layers
            for i in range(layer.num_outputs)
        }
        for layer in kept:
            _keep_fp32(module, layer, producers)
        if kept:
            flag = f"{how_strictly(quantized='int8' in precisions).upper()}_PRECISION_CONSTRAINTS"
            config.set_flag(getattr(module.BuilderFlag, flag))


def how_strictly(*, quantized: bool) -> str:
    """Return how TensorRT takes the constraints of a network, `quantized` by Q/DQ nodes or not: "obey" or "prefer".

    "obey" also holds for the types that Q/DQ nodes imply: with it, even without a constraint, TensorRT 8.5.3.1 could
    not build a text detector in INT8 ("All of the candidates were removed"). With "prefer" the builder got past this
    error. It deviates only where the build would fail (`BuilderFlag` in NVIDIA's API reference), and the audit reports
    an FP32 node that the engine's layers show in FP16.
    """
    return "prefer" if quantized else "obey"


def _keep_fp32(module: Any, layer: Any, producers: Mapping[str, Any]) -> None:
    """Constrain a layer to FP32, and the layers before it to FP32 outputs: else it is fused with one in FP16."""
    if not _is_computing(layer):
        return
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    if not any(output.dtype == module.DataType.FLOAT for output in outputs):
        return
    layer.precision = module.DataType.FLOAT
    for tensor in (layer.get_input(i) for i in range(layer.num_inputs)):
        source = producers.get(tensor.name) if tensor is not None else None
        if source is not None and tensor.dtype == module.DataType.FLOAT and _is_computing(source):
            index = next(i for i in range(source.num_outputs) if source.get_output(i).name == tensor.name)
            source.set_output_type(index, module.DataType.FLOAT)
    for index, output in enumerate(outputs):
        if output.dtype == module.DataType.FLOAT:
            layer.set_output_type(index, module.DataType.FLOAT)


def _is_computing(layer: Any) -> bool:
    return str(layer.type).rpartition(".")[2] not in _UNCONSTRAINED


def audit(layers: list[Mapping[str, Any]], typed: TypedModel, emit: Emit) -> Mapping[str, int]:
    """Return the number of nodes by the precision that a built engine runs them in.

    The precision of a node is read from the engine's layers that name it: from the types of the inspector, or from the
    name of the tactic. A node that no layer names (it was folded), or whose layer tells no type (as with dynamic
    shapes), counts as `unknown`. A node that runs in another precision than decided is reported; TensorRT is free to
    choose FP32 for a layer where it is faster than FP16.

    Args:
        layers: the layers in the engine inspector's JSON.
        typed: the decisions.
        emit: receives the warnings.

    Raises:
        AuditError: a node that must stay in FP32 runs in FP16.
    """
    achieved: dict[str, set[str]] = {}
    for nodes, precision in _computing(layers, typed):
        for node in nodes:
            achieved.setdefault(node, set()).add(precision)
    counts: Counter[str] = Counter()
    lowered: list[str] = []
    raised: list[str] = []
    for decision in typed.decisions:
        precisions = achieved.get(decision.node, {"unknown"})
        found = next(name for name in ("fp16", "int8", "fp32", "unknown") if name in precisions)
        counts[found] += 1
        # A node between quantized ones may become part of an INT8 layer, as a Relu does: its Q/DQ pairs say so.
        if found in ("unknown", decision.precision) or found == "int8":
            continue
        (lowered if decision.precision == "fp32" else raised).append(f"{decision.op} node {decision.node} in {found}")
    if lowered:
        run = "runs" if len(lowered) == 1 else "run"
        raise AuditError(
            f"{counted(len(lowered), 'node')} that must stay in FP32 {run} in a lower precision",
            why="; ".join(lowered[:_SHOWN]),
            fix="No engine was written. Use --precision fp32, or --rest fp32 with INT8, or a later TensorRT",
        )
    if raised:
        more = f"; and {len(raised) - _SHOWN} more" if len(raised) > _SHOWN else ""
        listed = "; ".join(raised[:_SHOWN])
        emit(Warned(f"TensorRT chose another precision for {counted(len(raised), 'node')}: {listed}{more}"))
    return dict(sorted(counts.items()))


def raised(layers: list[Mapping[str, Any]], typed: TypedModel, builder: str) -> tuple[Decision, ...]:
    """Return new decisions, FP32, about the nodes that share a layer in FP16 with nodes that must stay in FP32.

    TensorRT 8.5 fuses a convolution in FP16 with an Add behind it and computes both in FP16, whatever the constraint on
    the Add says. If the whole layer must be in FP32, nothing is left to be lowered.

    Args:
        layers: the layers in the engine inspector's JSON.
        typed: the decisions.
        builder: the TensorRT, for the reasons.
    """
    decisions = {decision.node: decision for decision in typed.decisions}
    changed: dict[str, Decision] = {}
    for nodes, precision in _computing(layers, typed):
        kept = [node for node in nodes if decisions[node].precision == "fp32"]
        if precision != "fp16" or not kept:
            continue
        reason = f"{builder} fuses it with {' and '.join(kept)}, which must stay in FP32"
        others = [decisions[node] for node in nodes if decisions[node].precision == "fp16"]
        changed |= {each.node: replace(each, precision="fp32", reason=reason) for each in others}
    return tuple(changed.values())


def with_decisions(typed: TypedModel, changed: tuple[Decision, ...]) -> TypedModel:
    """Return the typed graph with these decisions in place of its own about the same nodes."""
    by_node = {decision.node: decision for decision in changed}
    return replace(typed, decisions=tuple(by_node.get(decision.node, decision) for decision in typed.decisions))


def _computing(layers: list[Mapping[str, Any]], typed: TypedModel) -> Iterator[tuple[list[str], str]]:
    """Yield the nodes of each layer of an engine that computes, and the precision that it computes in."""
    names = {decision.node for decision in typed.decisions}
    for layer in layers:
        name = str(layer.get("Name", ""))
        # A copy that changes the layout or type of a tensor bears the name of the layer beside it.
        if layer.get("LayerType") != "Reformat" and not name.startswith("Reformatting CopyNode"):
            yield named(name, names), precision_of(layer)


_TACTICS = (("int8", r"i8i8|int8|imma"), ("fp16", r"f16f16|h16816|hmma|fp16|_h\d+"), ("fp32", r"f32f32|sgemm|fp32"))


def precision_of(layer: Mapping[str, Any]) -> str:
    """Return the precision that a layer of the inspector computes in, or `unknown`."""
    from trtopt.engine.trt.audit import inspected

    inputs = [precision for tensor in layer.get("Inputs", []) if (precision := inspected(tensor))]
    if inputs:
        return inputs[0]
    tactic = str(layer.get("TacticName", ""))
    return next((name for name, pattern in _TACTICS if re.search(pattern, tactic, re.IGNORECASE)), "unknown")


def named(text: str, names: set[str]) -> list[str]:
    """Return the nodes that a fused layer names: `conv1 + relu1`, `PWN(sigmoid, mul)`, `fc || gate`."""
    if text in names:
        return [text]
    parts = re.split(r"\s*(?:\+|\|\||,)\s*|PWN\(|\)|\{|\}", text)
    return [part.strip() for part in parts if part.strip() in names]
