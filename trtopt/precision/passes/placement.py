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
    9  Placement.group       one scale and one Q/DQ pair per tensor, shared by its consumers
    10 (precision.passes.half)      other nodes compute in the fallback precision

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.graph.query import (
    FLOAT_COMPUTE_FREE,
    SAME_VALUES,
    attribute,
    constant,
    dims,
    float_nodes,
    is_float,
    producer,
    reduced_axes,
)
from trtopt.precision.passes import attention, residual
from trtopt.precision.passes.wanted import REASON
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

MIN_CHANNELS = 16  # INT8 tensor-core tiles are 16 or 32 wide: with fewer channels the padding outweighs the gain
MIN_STEM_CHANNELS = 32  # output channels of the first convolution of an image network
MAX_IMAGE_CHANNELS = 4  # gray, RGB, and RGB with alpha or depth
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


def place(model: ir.Model, keep: Collection[str] = ()) -> Placement:
    """Decide which inputs of a prepared FP32 model are quantized; the model stays as it is.

    `keep` are the names of nodes that the user keeps in higher precision.

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
    reasons: dict[ir.Node, str] = {}
    inputs: list[tuple[ir.Node, int, int | None]] = []  # (node, index of the input, channel axis)
    masked_products = attention.masked_products(graph)
    for node in float_nodes(graph):
        why_not = REASON if node.name in keep else masked_products.get(node) or no_int8_gain(node)
        if weighted_inputs(node) and not why_not:
            inputs += [(node, index, axis) for index, axis in weighted_inputs(node)]
            reasons[node] = QUANTIZED + "a weighted operator"
        elif node.op_type not in FLOAT_COMPUTE_FREE:
            reasons[node] = why_not or NEVER.get(node.op_type, "not a weighted operator")
    # The following rules depend on which weighted operators are quantized.
    weighted = {node for node, _, _ in inputs}
    for node, index in residual.skip_inputs(graph, weighted):
        if node.name in keep:
            continue
        inputs.append((node, index, None))
        reasons[node] = QUANTIZED + "the skip input of a residual Add"
    for node in pools(graph, {(node, index) for node, index, _ in inputs}):
        if node.name in keep:
            continue
        inputs.append((node, 0, None))
        reasons[node] = QUANTIZED + "an average pool between quantized tensors"
    sites = tuple(Site(node, index, axis, scale_source(node.inputs[index])) for node, index, axis in inputs)
    return Placement(sites, concat_groups(graph, sites), reasons)


def weighted_inputs(node: ir.Node) -> tuple[tuple[int, int | None], ...]:
    """Return (index, channel axis) of each input of a weighted operator to quantize (rules 1 and 2).

    The axis is that of the output channels for a weight, and None for an activation. Other nodes have no such inputs.
    """
    if node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "Conv":  # weight [outputs, inputs / groups, ...]
        return ((0, None), (1, 0))
    if node.op_type == "ConvTranspose":  # weight [inputs, outputs / groups, ...]
        return ((0, None), (1, 1))
    if node.op_type not in ("Gemm", "MatMul") or constant(node.inputs[0]) is not None:
        return ()
    weight = constant(node.inputs[1])
    if weight is None:  # a product of two activations
        return ((0, None), (1, None))
    if node.op_type == "Gemm":
        return ((0, None), (1, 0 if attribute(node, "transB", 0) else 1))
    return ((0, None), (1, weight.ndim - 1))


def channel_axis(node: ir.Node) -> int | None:
    """Return the axis on which a weighted operator reads the channels of its input; None if it has no such axis.

    It is 1 for convolutions, and -1, the last, for products with a constant matrix. The axis belongs to the operator,
    not to the tensor: a convolution and a matrix product may read the same one.
    """
    if not weighted_inputs(node) or constant(node.inputs[1]) is None:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    is_matrix = len(dims(node.inputs[1]) or ()) == 2
    return -1 if is_matrix and not attribute(node, "transA", 0) else None


def channel_axes(nodes: Iterable[ir.Node]) -> set[tuple[str, int]]:
    """Return (tensor, channel axis) for the input of every weighted operator that has such an axis."""
    axes = {(node, channel_axis(node)) for node in nodes}
    return {(node.inputs[0].name or "", axis) for node, axis in axes if axis is not None and node.inputs[0] is not None}


def no_int8_gain(node: ir.Node) -> str:
    """Return why INT8 would not make a weighted operator faster (rule 8); empty if it would."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = constant(node.inputs[1])
        if weight is None:
            return "its weight is not constant"
        groups = attribute(node, "group", 1)
        channels = [weight.shape[0], weight.shape[1] * groups]
        if is_stem(node, weight.shape):
            return ""
        if min(channels) < MIN_CHANNELS:
            count = min(channels)
            return f"{count} channel{'s' * (count != 1)}: fewer than {MIN_CHANNELS}"
    if node.op_type in ("Gemm", "MatMul"):
        if constant(node.inputs[0]) is not None:
            return "its left operand is constant"
        m, k, n = _product_sizes(node)
        if m == 1 or n == 1:
            return "a matrix-vector product: bound by memory, not arithmetic"
        for name, size in (("inner", k), ("outer", n)):
            if size is not None and size < MIN_CHANNELS:
                return f"{name} dimension {size}: less than {MIN_CHANNELS}"
    return ""


def is_stem(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Return whether a Conv with a weight of this shape is the first of a network for images of up to 4 channels.

    TensorRT has INT8 kernels for such inputs, and then fuses the Conv with what follows. (TensorRT 8.5.3.1 on an H100:
    it took a ResNet-50 at batch 32 from 0.975 to 0.853 ms.) They were seen to pay with 32 and 64 output channels. With
    the 16 of a text detector, the SQNR of the output falls by 2 dB, and half of INT8's 32 channels are padding.
    """
    if node.op_type != "Conv" or len(shape) != 4 or attribute(node, "group", 1) != 1:
        return False
    if shape[0] < MIN_STEM_CHANNELS or shape[1] > MAX_IMAGE_CHANNELS:
        return False
    todo, visited = [node.inputs[0]], set()
    while todo:  # no weighted operator before it
        source = producer(todo.pop())
        if source is None or source in visited:
            continue
        if weighted_inputs(source):
            return False
        visited.add(source)
        todo.extend(source.inputs)
    return True


def _product_sizes(node: ir.Node) -> tuple[int | None, int | None, int | None]:
    """Return M, K and N of a matrix product [M, K] x [K, N]; None where a size is dynamic or unknown."""
    left, right = dims(node.inputs[0]), dims(node.inputs[1])
    if not left or not right:
        return None, None, None
    if len(left) < 2 or len(right) < 2:  # a vector on one side: its missing dimension is 1
        return (1 if len(left) < 2 else None), left[-1], (1 if len(right) < 2 else None)
    if attribute(node, "transA", 0):
        left = left[::-1]
    if attribute(node, "transB", 0):
        right = right[::-1]
    inner = left[-1] if left[-1] is not None else right[-2]
    # One matrix multiplies the rows of all matrices on the left: they are rows of one product.
    rows = left[:-1] if len(right) == 2 else left[-2:-1]
    return (None if None in rows else math.prod(row or 0 for row in rows)), inner, right[-1]


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
        if is_average_pool(node) and not node.outputs[0].is_graph_output():
            uses = list(_uses(node.outputs[0]))
            if uses and all(use in sites for use in uses):
                yield node


def is_average_pool(node: ir.Node) -> bool:
    """Return whether a node is an average pool, or a mean over all spatial axes.

    TensorRT's parser makes the same Reduce layer of the latter as of a GlobalAveragePool.
    """
    if node.op_type != "ReduceMean":
        return node.op_type in POOLS
    rank = len(dims(node.inputs[0]) or ())
    return rank > 2 and reduced_axes(node, rank) == frozenset(range(2, rank))


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield (consumer, index of its input) of the value, also through operators that only move values."""
    todo = [value]
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type in SAME_VALUES:
                todo.append(node.outputs[0])
            else:
                yield node, index


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
