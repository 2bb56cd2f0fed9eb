"""Matching tensors of two graphs, and edits that make tensors outputs or inputs of a graph.

Touches: the onnx-ir models that are passed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtopt.graph.query import FLOAT_COMPUTE_FREE, constant, dims
from trtopt.graph.views import MOVES, before
from trtopt.types import EQUALIZED

if TYPE_CHECKING:
    import onnx_ir as ir

_RETYPING = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Identity"})
"""Operators that a typed graph may have between a node and the tensor that keeps the name of the FP32 graph."""

_FLOATS = {"FLOAT16": "fp16", "BFLOAT16": "bf16", "FLOAT": "fp32", "DOUBLE": "fp64"}
"""Names of precisions by the names of their ONNX dtypes."""


@dataclass(frozen=True, slots=True)
class Link:
    """An equalized activation. The tensors before it that are scaled by the same factors have the same link.

    Attributes:
        consumer: the name of a weighted node that consumes the activation.
        axis: the axis of its channels.
    """

    consumer: str
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A node's result that both graphs compute.

    Attributes:
        node: the name of the node in the typed graph.
        op: its operator.
        precision: its precision.
        tensor: the name of the result in the typed graph.
        reference: the name of the result in the FP32 graph.
        chain: the tensors of the typed graph from `tensor`, through casts and Q/DQ, to the one that corresponds to
            `reference`. The errors of these casts and Q/DQ are attributed to the node.
        link: the equalized activation, if the tensor is equalized and its counterpart is not.
        before: the points that the node's inputs are computed from, by `tensor`.
        between: the computing nodes without a counterpart between these points and the node.
    """

    node: str
    op: str
    precision: str
    tensor: str
    reference: str
    chain: tuple[str, ...]
    link: Link | None
    before: tuple[str, ...]
    between: tuple[str, ...]

    @property
    def end(self) -> str:
        """Tensor of the typed graph that is compared with FP32's."""
        return self.chain[-1]


def points(reference: ir.Model, typed: ir.Model) -> tuple[Point, ...]:
    """Return the results of computing nodes, and the outputs, that both graphs have, in the order of the typed graph.

    They are matched by name. A quantizer for ONNX keeps the names of existing tensors, and gives new names to the casts
    and Q/DQ nodes that it inserts. Tensors whose shapes differ do not match. Types and shapes must have been inferred.
    """
    references = {value.name: value for node in reference.graph for value in node.outputs if is_floating(value)}
    matched: dict[str, Point] = {}
    # The point of every tensor that is part of a chain.
    point_of: dict[ir.Value, str] = {}
    for node in typed.graph:
        for value in _results(node):
            chain, counterpart, link = _counterpart(value, references)
            if not chain or value in point_of:
                continue
            # Results of nodes without arithmetic are of interest only as outputs.
            if not _computes(node) and not chain[-1].is_graph_output():
                continue
            name = value.name or ""
            before, between = _before(node, value, point_of)
            matched[name] = Point(
                node=node.name or name,
                op=node.op_type,
                precision=_precision(node),
                tensor=name,
                reference=counterpart,
                chain=tuple(tensor.name or "" for tensor in chain),
                link=link,
                before=before,
                between=between,
            )
            point_of.update(dict.fromkeys(chain, name))
    return tuple(matched.values())


def is_floating(value: ir.Value) -> bool:
    """Return whether the value is a floating-point tensor of 16, 32 or 64 bits."""
    return value.dtype is not None and value.dtype.name in _FLOATS


def _computes(node: ir.Node) -> bool:
    return node.op_type not in FLOAT_COMPUTE_FREE


def _results(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the floating-point results of a node. For a MatMul followed by a bias, yield the sum.

    The two are one layer. Bias correction compensates in the Add for the mean error of the MatMul's weights, so the
    product alone does not correspond to FP32's.
    """
    if node.op_type in _RETYPING:
        return
    for value in node.outputs:
        if is_floating(value):
            biased = _biased(value) if node.op_type == "MatMul" else None
            yield biased if biased is not None else value


def _biased(value: ir.Value) -> ir.Value | None:
    """Return the sum of a product and its bias, or None if the only consumer is not an Add of a constant."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    consumer, index = uses[0].node, uses[0].idx
    if consumer.op_type == "Cast":
        return _biased(consumer.outputs[0])
    if consumer.op_type != "Add":
        return None
    bias = constant(consumer.inputs[1 - index])
    return consumer.outputs[0] if bias is not None else None


def _counterpart(value: ir.Value, references: Mapping[str | None, ir.Value]) -> tuple[list[ir.Value], str, Link | None]:
    """Find the nearest tensor, from `value` through casts and Q/DQ, that has a counterpart in the FP32 graph.

    Returns:
        The tensors from `value` to the one found, the name of the counterpart, and the link if the tensor is equalized.
        There are no tensors if none has a counterpart.
    """
    # Breadth first, so that the nearest one is found.
    paths = [[value]]
    while paths:
        path = paths.pop(0)
        last = path[-1]
        if is_floating(last):
            name = last.name or ""
            if name in references and _same_shape(last, references[name]):
                return [*path, *_clipped(last, references[name])], name, None
            # An equalized tensor has the name of the FP32 tensor with a suffix.
            plain = name.removesuffix(EQUALIZED)
            if plain != name and plain in references and _same_shape(last, references[plain]):
                link = _link(last)
                if link is not None:
                    return path, plain, link
        for use in last.uses():
            # The other inputs of Q/DQ are scales and zero points.
            if use.node.op_type in _RETYPING and use.idx == 0:
                paths.append([*path, use.node.outputs[0]])
    return [], "", None


def _clipped(value: ir.Value, reference: ir.Value) -> list[ir.Value]:
    """Return the tensors of the Q/DQ after `value` that replaces FP32's Relu or Clip; none if there is none.

    onnxruntime's quantizer removes these operators, renames their inputs to their outputs, and lets Q clip the values.
    """
    producer, removed = value.producer(), reference.producer()
    if producer is None or removed is None or removed.op_type not in ("Relu", "Clip"):
        return []
    if producer.op_type == removed.op_type:
        return []  # it was not removed
    chain = [value]
    for op in ("QuantizeLinear", "DequantizeLinear"):
        consumers = [use.node for use in chain[-1].uses()]
        if len(consumers) != 1 or consumers[0].op_type != op:
            return []
        chain.append(consumers[0].outputs[0])
    return chain[1:]


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Return whether two tensors can have the same shape, as far as their shapes are known."""
    ours, theirs = dims(one), dims(other)
    if ours is None or theirs is None:
        return True
    return len(ours) == len(theirs) and all(a == b or None in (a, b) for a, b in zip(ours, theirs, strict=True))


def _link(value: ir.Value) -> Link | None:
    """Return the link of an equalized tensor: the first weighted node that consumes it, and the channel axis there."""
    moves: list[ir.Node] = []
    while uses := list(value.uses()):
        # Every consumer leads to a weighted node of the link: the first one identifies it.
        consumer = uses[0].node
        if consumer.op_type in ("Conv", "Gemm", "MatMul"):
            axis: int | None = 1 if consumer.op_type == "Conv" else len(dims(value) or ()) - 1
            for node in reversed(moves):
                axis = axis if axis is None or node.op_type not in MOVES else before(node, axis)
            return None if axis is None else Link(consumer.name or consumer.outputs[0].name or "", axis)
        moves.append(consumer)
        value = consumer.outputs[0]
    return None


def _before(
    node: ir.Node, value: ir.Value, point_of: Mapping[ir.Value, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the points that a result of `node` is computed from, and the nodes without a counterpart on the way."""
    before: dict[str, None] = {}  # used as ordered sets
    between: dict[str, None] = {}
    last = value.producer()
    pending = [last] if last is not None else []
    visited = set(pending)
    while pending:
        for consumed in pending.pop().inputs:
            if consumed is None:
                continue
            if consumed in point_of:
                before[point_of[consumed]] = None
                continue
            producer = consumed.producer()
            if producer is None or producer in visited:
                continue
            visited.add(producer)
            pending.append(producer)
            if _computes(producer) and producer is not node and any(map(is_floating, producer.outputs)):
                between[producer.name or producer.outputs[0].name or ""] = None
    return tuple(before), tuple(between)


def _precision(node: ir.Node) -> str:
    """Return the precision of a node in the graph: that of its dequantized inputs, or else that of its results."""
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear":
            codes = producer.inputs[0]
            dtype = codes.dtype.name if codes is not None and codes.dtype is not None else ""
            return "fp8" if dtype.startswith("FLOAT8") else dtype.lower()
    return next(_FLOATS[value.dtype.name] for value in node.outputs if value.dtype is not None and is_floating(value))
