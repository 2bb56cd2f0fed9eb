"""Placement of Q/DQ pairs: which inputs of which nodes are quantized to 8 bits, and why the others are not.

The rules are NVIDIA's for explicit quantization (TensorRT developer guide, "Working with Quantized Types"; the custom
Q/DQ cases of the TensorFlow quantization toolkit; ModelOpt's placement for ONNX), one small function each:

    1  weighted_inputs       quantize both inputs of Conv, ConvTranspose, Gemm and MatMul
    2  weighted_inputs       weights have one scale per output channel, activations one per tensor
    3  (nothing to do)       no Q after a weighted operator: TensorRT fuses the Q at the next operator's input into it
    4  residual.skip_inputs  quantize the skip input of a residual Add, and never between Conv and Add
    5  scale_source, pools   data movement keeps the scale; average pools are quantized if their consumers are
    6  concat_groups         the inputs and the output of a Concat share one scale
    7  NEVER, attention      not quantized: softmax, norms, ...; attention under a mask computed at run time
    8  no_int8_gain          not quantized: operators too small to gain (but an image network's first convolution is),
                             and weights that are not constant
       depthwise.no_kernel   not quantized: depthwise convolutions whose output is not quantized at once
    9  Placement.group       one scale and one Q/DQ pair per tensor, shared by its consumers
    10 (precision.passes.half)      other nodes compute in the fallback precision

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.graph.query import (
    FLOAT_COMPUTE_FREE,
    SAME_VALUES,
    constant,
    dims,
    float_nodes,
    is_float,
    only_read_by,
    producer,
    reduced_axes,
)
from trtopt.precision.passes import attention, residual
from trtopt.precision.passes.depthwise import no_kernel
from trtopt.precision.passes.gain import no_int8_gain
from trtopt.precision.passes.operands import weighted_inputs
from trtopt.types import NOT_WEIGHTED, Decision, Keep

if TYPE_CHECKING:
    import onnx_ir as ir

POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
NEVER = {
    "Softmax": "its result needs more than 8 bits",
    "LogSoftmax": "its result needs more than 8 bits",
    "Sigmoid": "not faster in INT8 on TensorRT",
    "HardSigmoid": "not faster in INT8 on TensorRT",
    "LeakyRelu": "not faster in INT8 on TensorRT",
    "InstanceNormalization": "its statistics need more than 8 bits",
    "LayerNormalization": "its statistics need more than 8 bits",
    "GroupNormalization": "its statistics need more than 8 bits",
    "LSTM": "recurrent: TensorRT does not support it in INT8",
    "GRU": "recurrent: TensorRT does not support it in INT8",
    "RNN": "recurrent: TensorRT does not support it in INT8",
}
"""Operators that are never quantized, with the reason."""
QUANTIZED = "quantized: "
"""The prefix of the reasons of quantized nodes in `Placement.reasons`."""


@dataclass(frozen=True, slots=True)
class Site:
    """An input of a node to quantize.

    Attributes:
        node: the node.
        index: the position of the input.
        axis: the channel axis of a weight; None for an activation, which has one scale per tensor.
        scale_from: the name of the tensor whose calibrated scale is used: the input itself, or the tensor that it was
            moved from (rule 5).
    """

    node: ir.Node
    index: int
    axis: int | None
    scale_from: str


@dataclass(frozen=True, slots=True)
class Placement:
    """All sites, the groups of tensors that share a scale, and the reason for each floating-point node's precision."""

    sites: tuple[Site, ...]
    groups: tuple[frozenset[str], ...]
    reasons: dict[ir.Node, str]

    def tensors(self) -> tuple[str, ...]:
        """Return the names of the tensors that need a calibrated scale, in graph order."""
        sources = [site.scale_from for site in self.sites if site.axis is None]
        return tuple(dict.fromkeys(sources))

    def decisions(self, precision: str = "int8", rest: str = "fp16") -> tuple[Decision, ...]:
        """Return a decision for each node that does arithmetic: `precision` if it is quantized, `rest` otherwise."""
        return tuple(
            Decision(
                node=node.name or "",
                op=node.op_type,
                precision=precision if reason.startswith(QUANTIZED) else rest,
                reason=reason.removeprefix(QUANTIZED),
            )
            for node, reason in self.reasons.items()
        )

    def group(self, tensor: str) -> frozenset[str]:
        """Return the tensors that share the scale of `tensor`, including itself: it is the largest of theirs."""
        return next((group for group in self.groups if tensor in group), frozenset({tensor}))


def place(model: ir.Model, keep: Mapping[str, Keep] = MappingProxyType({})) -> Placement:
    """Decide which inputs of a prepared FP32 model are quantized; the model stays as it is.

    `keep` are the nodes to keep in higher precision, by name.

    Raises:
        ModelError: the model is quantized already.
    """
    graph = model.graph
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul") for node in graph):
        raise ModelError(
            "the model is quantized already",
            why="it contains Q/DQ or QLinear nodes",
            fix="Give the FP32 model, or convert this one with --precision fp16",
        )
    masked_products = attention.masked_products(graph)
    no_gain = {node: masked_products.get(node) or no_int8_gain(node) for node in float_nodes(graph)}
    without_kernel: dict[ir.Node, str] = {}
    while True:
        inputs, reasons = _placed(graph, no_gain, without_kernel)
        quantized = {(node, index) for node, index, _ in inputs}
        # Without a kernel a node is not quantized, and then what is before it may be without one, too.
        if not (found := {node: reason for node, _ in quantized if (reason := no_kernel(node, quantized))}):
            break
        without_kernel |= found
    # Whether there is a kernel does not depend on what is kept, so that each node can be kept for itself.
    kept = {node: wanted.reason for node in no_gain if (wanted := keep.get(node.name or ""))}
    if kept:
        inputs, reasons = _placed(graph, no_gain, without_kernel | kept)
    sites = tuple(Site(node, index, axis, scale_source(node.inputs[index])) for node, index, axis in inputs)
    return Placement(sites, concat_groups(graph, sites), reasons)


def _placed(
    graph: ir.Graph, no_gain: Mapping[ir.Node, str], not_wanted: Mapping[ir.Node, str]
) -> tuple[list[tuple[ir.Node, int, int | None]], dict[ir.Node, str]]:
    """Return (node, index of the input, channel axis) of the inputs to quantize, and the reasons for all nodes.

    Args:
        graph: the main graph.
        no_gain: its floating-point nodes in graph order, each with why INT8 would not make it faster, if so.
        not_wanted: those that stay in higher precision in any case, with the reason.
    """
    reasons: dict[ir.Node, str] = {}
    inputs: list[tuple[ir.Node, int, int | None]] = []
    for node, why_not in no_gain.items():
        why_not = not_wanted.get(node, why_not)
        if weighted_inputs(node) and not why_not:
            inputs += [(node, index, axis) for index, axis in weighted_inputs(node)]
            reasons[node] = QUANTIZED + "a weighted operator"
        elif node.op_type not in FLOAT_COMPUTE_FREE:
            reasons[node] = why_not or NEVER.get(node.op_type, NOT_WEIGHTED)
    # The following rules depend on which weighted operators are quantized.
    weighted = {node for node, _, _ in inputs}
    kept = {node for node in not_wanted if not no_gain[node]}
    for node, index in residual.skip_inputs(graph, weighted, kept):
        if node in not_wanted:
            continue
        inputs.append((node, index, None))
        reasons[node] = QUANTIZED + "the skip input of a residual Add"
    for node in pools(graph, {(node, index) for node, index, _ in inputs}):
        if node in not_wanted:
            continue
        inputs.append((node, 0, None))
        reasons[node] = QUANTIZED + "an average pool between quantized tensors"
    return inputs, reasons


def scale_source(value: ir.Value | None) -> str:
    """Return the name of the tensor whose scale the value has (rule 5).

    It is the value itself, or the one that it was moved from by a chain of operators that only move values.
    """
    while (node := producer(value)) is not None and node.op_type in SAME_VALUES and is_float(node.inputs[0]):
        if constant(node.inputs[0]) is not None:  # a constant cannot be observed
            break
        value = node.inputs[0]
    return value.name or "" if value is not None else ""


def pools(graph: ir.Graph, sites: set[tuple[ir.Node, int]]) -> Iterator[ir.Node]:
    """Yield the average pools whose consumers all quantize their input (rule 5); the pool's input is then quantized.

    TensorRT runs a pool in INT8 if both its input and its output are quantized.

    Args:
        graph: the main graph.
        sites: (node, index of the input) of the inputs that are quantized.
    """
    for node in graph:
        if is_average_pool(node) and only_read_by(node.outputs[0], sites):
            yield node


def is_average_pool(node: ir.Node) -> bool:
    """Return whether a node is an average pool, or a mean over all spatial axes.

    TensorRT's parser makes the same Reduce layer of the latter as of a GlobalAveragePool.
    """
    if node.op_type != "ReduceMean":
        return node.op_type in POOLS
    rank = len(dims(node.inputs[0]) or ())
    return rank > 2 and reduced_axes(node, rank) == frozenset(range(2, rank))


def concat_groups(graph: ir.Graph, sites: tuple[Site, ...]) -> tuple[frozenset[str], ...]:
    """Return the groups of quantized tensors that share a scale, by name (rule 6).

    The quantized inputs of a Concat and its output form a group if the output is quantized: with equal scales the
    codes are concatenated without requantization. Groups with a common tensor are merged.
    """
    quantized = {site.scale_from for site in sites if site.axis is None}
    groups: list[set[str]] = []
    for node in graph:
        if node.op_type != "Concat" or node.outputs[0].name not in quantized:
            continue
        members = {node.outputs[0].name or ""} | {scale_source(value) for value in node.inputs} & quantized
        overlapping = [group for group in groups if group & members]
        groups = [group for group in groups if group not in overlapping]
        groups.append(members.union(*overlapping))
    return tuple(frozenset(group) for group in groups if len(group) > 1)
