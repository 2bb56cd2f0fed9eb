"""Which inputs of which nodes are quantized to 8 bits, and for every other node, why not.

The rules are NVIDIA's for explicit quantization (TensorRT developer guide, "Working with Quantized Types"; the
TensorFlow quantization toolkit's custom Q/DQ cases; ModelOpt's ONNX placement), one small function each:

    1  weighted_inputs       both inputs of Conv, ConvTranspose, Gemm and MatMul
    2  weighted_inputs       weights per output channel, activations per tensor
    3  (by omission)         no Q behind a weighted operator: the next operator's input Q moves back and fuses
    4  residual.skip_inputs  of a residual Add only the skip input, never between Conv and Add
    5  scale_source, pools   data movement passes one scale through; average pools need Q on both sides
    6  concat_groups         inputs and output of a Concat share one scale
    7  NEVER, attention      softmax and the like; both products of attention under a mask computed at run time
    8  does_not_pay          products and convolutions too small to gain, and weights that are not constant
    9  Placement.group       one scale and one Q/DQ pair a tensor, shared by all that read it
    10 (precision.half)      the rest in 16 bits

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.precision import attention, residual
from trtopt.precision.graph import (
    FLOAT_COMPUTE_FREE,
    SAME_VALUES,
    attribute,
    constant,
    dims,
    float_nodes,
    is_float,
    producer,
)
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

MIN_CHANNELS = 16  # INT8 tensor-core tiles are 16 or 32 wide: below that the padding eats the gain
POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
NEVER = {
    "Softmax": "its result needs more than 8 bits",
    "LogSoftmax": "its result needs more than 8 bits",
    "Sigmoid": "TensorRT has no INT8 form of it that pays",
    "HardSigmoid": "TensorRT has no INT8 form of it that pays",
    "LeakyRelu": "TensorRT has no INT8 form of it that pays",
    "InstanceNormalization": "its statistics need more than 8 bits",
    "LayerNormalization": "its statistics need more than 8 bits",
    "GroupNormalization": "its statistics need more than 8 bits",
    "LSTM": "recurrent: TensorRT has no INT8 form of it",
    "GRU": "recurrent: TensorRT has no INT8 form of it",
    "RNN": "recurrent: TensorRT has no INT8 form of it",
}
QUANTIZED = "quantized: "


@dataclass(frozen=True, slots=True)
class Site:
    """An input of a node to quantize. `axis` is a weight's channel axis; None for an activation, one scale a tensor.

    `scale_from` names the tensor whose calibrated scale is used (the input itself, or what it was moved from).
    """

    node: ir.Node
    index: int
    axis: int | None
    scale_from: str


@dataclass(frozen=True, slots=True)
class Placement:
    """All sites; the groups of tensors that share a scale; the reason for each floating-point node."""

    sites: tuple[Site, ...]
    groups: tuple[frozenset[str], ...]
    reasons: dict[ir.Node, str]

    def tensors(self) -> tuple[str, ...]:
        """Tensors that need a calibrated scale, in graph order."""
        members = [site.scale_from for site in self.sites if site.axis is None]
        return tuple(dict.fromkeys(members))

    def decisions(self, precision: str = "int8", rest: str = "fp16") -> tuple[Decision, ...]:
        """What becomes of each computing node: quantized to `precision`, or else of type `rest`."""
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
        """The tensors, itself among them, whose largest scale this tensor takes."""
        return next((group for group in self.groups if tensor in group), frozenset({tensor}))


def place(model: ir.Model) -> Placement:
    """Decide for a prepared FP32 model.

    Raises:
        ModelError: the model is quantized already.
    """
    graph = model.graph
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul") for node in graph):
        raise ModelError(
            "the model is quantized already",
            why="it holds Q/DQ or QLinear nodes",
            fix="Give the FP32 model, or convert this one with --precision fp16",
        )
    reasons: dict[ir.Node, str] = {}
    inputs: list[tuple[ir.Node, int, int | None]] = []
    under_mask = attention.masked_products(graph)
    for node in float_nodes(graph):
        why_not = under_mask.get(node) or does_not_pay(node)
        if weighted_inputs(node) and not why_not:
            inputs += [(node, index, axis) for index, axis in weighted_inputs(node)]
            reasons[node] = QUANTIZED + "a weighted operator"
        elif node.op_type not in FLOAT_COMPUTE_FREE:
            reasons[node] = why_not or NEVER.get(node.op_type, "not a weighted operator")
    weighted = {node for node, _, _ in inputs}
    for node, index in residual.skip_inputs(graph, weighted):
        inputs.append((node, index, None))
        reasons[node] = QUANTIZED + "the skip input of a residual Add"
    for node in pools(graph, {(node, index) for node, index, _ in inputs}):
        inputs.append((node, 0, None))
        reasons[node] = QUANTIZED + "an average pool between quantized tensors"
    sites = tuple(Site(node, index, axis, scale_source(node.inputs[index])) for node, index, axis in inputs)
    return Placement(sites, concat_groups(graph, sites), reasons)


def weighted_inputs(node: ir.Node) -> tuple[tuple[int, int | None], ...]:
    """Rules 1 and 2: (input, channel axis) of what to quantize; the axis is None for an activation."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "Conv":
        return ((0, None), (1, 0))
    if node.op_type == "ConvTranspose":
        return ((0, None), (1, 1))
    if node.op_type not in ("Gemm", "MatMul") or constant(node.inputs[0]) is not None:
        return ()
    weight = constant(node.inputs[1])
    if weight is None:
        return ((0, None), (1, None))
    if node.op_type == "Gemm":
        return ((0, None), (1, 0 if attribute(node, "transB", 0) else 1))
    return ((0, None), (1, weight.ndim - 1))


def channel_axes(nodes: Iterable[ir.Node]) -> dict[str, int]:
    """The channel axis of every tensor that a weighted operator reads: 1 for convolutions, the last for products."""
    axes = {}
    for node in nodes:
        if weighted_inputs(node) and node.inputs[0] is not None:
            axes[node.inputs[0].name or ""] = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
    return axes


def does_not_pay(node: ir.Node) -> str:
    """Rule 8: why INT8 would not make this weighted operator faster; empty when it would."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = constant(node.inputs[1])
        if weight is None:
            return "its weight is not constant"
        groups = attribute(node, "group", 1)
        channels = [weight.shape[0], weight.shape[1] * groups]
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


def _product_sizes(node: ir.Node) -> tuple[int | None, int | None, int | None]:
    """M, K and N of a matrix product; None where dynamic or unknown."""
    left, right = dims(node.inputs[0]), dims(node.inputs[1])
    if not left or not right:
        return None, None, None
    if len(left) < 2 or len(right) < 2:  # a vector on one side: its missing dimension is 1
        return (1 if len(left) < 2 else None), left[-1], (1 if len(right) < 2 else None)
    if attribute(node, "transA", 0):
        left = left[::-1]
    if attribute(node, "transB", 0):
        right = right[::-1]
    return left[-2], left[-1] if left[-1] is not None else right[-2], right[-1]


def scale_source(value: ir.Value | None) -> str:
    """Rule 5: the tensor whose scale this one takes, through operators that only move values."""
    while (node := producer(value)) is not None and node.op_type in SAME_VALUES and is_float(node.inputs[0]):
        value = node.inputs[0]
    return value.name or "" if value is not None else ""


def pools(graph: ir.Graph, sites: set[tuple[ir.Node, int]]) -> Iterator[ir.Node]:
    """Rule 5: average pools all of whose readers quantize what they read; their own input is then quantized too."""
    for node in graph:
        if node.op_type in POOLS and not node.outputs[0].is_graph_output():
            readers = list(_readers(node.outputs[0]))
            if readers and all(reader in sites for reader in readers):
                yield node


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    todo = [value]
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type in SAME_VALUES:
                todo.append(node.outputs[0])
            else:
                yield node, index


def concat_groups(graph: ir.Graph, sites: tuple[Site, ...]) -> tuple[frozenset[str], ...]:
    """Rule 6: quantized tensors that meet in a Concat whose result is quantized, as groups of equal scale."""
    quantized = {site.scale_from for site in sites if site.axis is None}
    groups: list[set[str]] = []
    for node in graph:
        if node.op_type != "Concat" or node.outputs[0].name not in quantized:
            continue
        members = {node.outputs[0].name or ""} | {scale_source(value) for value in node.inputs} & quantized
        touching = [group for group in groups if group & members]
        groups = [group for group in groups if group not in touching]
        groups.append(members.union(*touching))
    return tuple(frozenset(group) for group in groups if len(group) > 1)
