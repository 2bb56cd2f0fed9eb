"""Which tensors of two graphs mean the same, and copies of the graphs that show them.

Touches: the onnx-ir models that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtopt.precision.equalize import SUFFIX
from trtopt.precision.graph import FLOAT_COMPUTE_FREE, cast, constant, dims, names, unique

if TYPE_CHECKING:
    import onnx_ir as ir

_RETYPING = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Identity"})
"""What a typed graph holds between a node and the tensor that still has the FP32 graph's name."""

_FLOATS = {"FLOAT16": "fp16", "BFLOAT16": "bf16", "FLOAT": "fp32", "DOUBLE": "fp64"}


@dataclass(frozen=True, slots=True)
class Link:
    """An equalized activation, and the tensors before it that are scaled with it, by the same factors: the weighted
    node that reads it, and the axis of its channels.
    """

    reader: str
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A result of a node that both graphs compute.

    `tensor` is its name in the typed graph, `reference` that in the FP32 graph. `chain` leads from the one to what has
    the other's meaning, through casts and Q/DQ: the noise of these is the node's. `link` is there when the tensor was
    equalized and its counterpart was not. `before` are the points that the node reads, and `between` the computing
    nodes without a counterpart that stand between them and it.
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
        """The typed tensor that is held against FP32's."""
        return self.chain[-1]


def points(reference: ir.Model, typed: ir.Model) -> tuple[Point, ...]:
    """Every result of a computing node, and every output, of the typed graph that the FP32 graph has too, in order.

    They are matched by name: what quantizes ONNX keeps the names of what it was given, and gives new ones to the casts
    and Q/DQ that it inserts. Types and shapes must have been inferred; tensors whose shapes differ are no match.
    """
    known = {value.name: value for node in reference.graph for value in node.outputs if _is_floating(value)}
    found: dict[str, Point] = {}
    ends: dict[ir.Value, str] = {}
    for node in typed.graph:
        for value in _results(node):
            chain, counterpart, link = _counterpart(value, known)
            if not chain or value in ends or not (_computes(node) or chain[-1].is_graph_output()):
                continue
            before, between = _before(node, value, ends)
            found[value.name or ""] = Point(
                node=node.name or value.name or "",
                op=node.op_type,
                precision=_precision(node),
                tensor=value.name or "",
                reference=counterpart,
                chain=tuple(each.name or "" for each in chain),
                link=link,
                before=before,
                between=between,
            )
            ends.update(dict.fromkeys(chain, value.name or ""))
    return tuple(found.values())


def _is_floating(value: ir.Value) -> bool:
    """Whether the value is a tensor of 16, 32 or 64 bits of floating point."""
    return value.dtype is not None and value.dtype.name in _FLOATS


def _computes(node: ir.Node) -> bool:
    return node.op_type not in FLOAT_COMPUTE_FREE


def _results(node: ir.Node) -> Iterator[ir.Value]:
    """The floating-point results of a node: those of a MatMul with the bias that stands behind it.

    They are one layer. Bias correction takes the mean error of a product's weight out in the Add, so that neither
    tensor alone has FP32's meaning.
    """
    if node.op_type in _RETYPING:
        return
    for value in node.outputs:
        if _is_floating(value):
            sum_of = _biased(value) if node.op_type == "MatMul" else None
            yield sum_of if sum_of is not None else value


def _biased(value: ir.Value) -> ir.Value | None:
    """The sum of a product and its bias, when an Add of a constant is all that reads the product."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader, index = uses[0].node, uses[0].idx
    if reader.op_type == "Cast":
        return _biased(reader.outputs[0])
    bias = constant(reader.inputs[1 - index]) if reader.op_type == "Add" else None
    return reader.outputs[0] if bias is not None and bias.ndim == 1 else None


def _counterpart(value: ir.Value, known: Mapping[str | None, ir.Value]) -> tuple[list[ir.Value], str, Link | None]:
    """The tensors from `value` to the nearest that has a counterpart, its name there, and the link when `value` is
    equalized; no tensors when none has one.
    """
    todo = [[value]]
    while todo:
        path = todo.pop(0)
        last = path[-1]
        if _is_floating(last):
            name = last.name or ""
            if name in known and _fits(last, known[name]):
                return [*path, *_clipped(last, known[name])], name, None
            plain = name.removesuffix(SUFFIX)
            link = _link(last) if plain != name and plain in known and _fits(last, known[plain]) else None
            if link is not None:
                return path, plain, link
        todo += [[*path, use.node.outputs[0]] for use in last.uses() if use.node.op_type in _RETYPING and use.idx == 0]
    return [], "", None


def _clipped(value: ir.Value, reference: ir.Value) -> list[ir.Value]:
    """The tensors of the Q/DQ behind `value` that does the work of FP32's Relu or Clip; none when it is not so.

    onnxruntime's quantizer drops these operators, gives their name to what they read, and lets Q cut off the rest.
    """
    source, was = value.producer(), reference.producer()
    if source is None or was is None or was.op_type not in ("Relu", "Clip") or source.op_type == was.op_type:
        return []
    chain = [value]
    for op in ("QuantizeLinear", "DequantizeLinear"):
        readers = [use.node for use in chain[-1].uses()]
        if len(readers) != 1 or readers[0].op_type != op:
            return []
        chain.append(readers[0].outputs[0])
    return chain[1:]


def _fits(one: ir.Value, other: ir.Value) -> bool:
    """Whether two tensors can have the same shape, as far as their shapes are known."""
    ours, theirs = dims(one), dims(other)
    if ours is None or theirs is None:
        return True
    return len(ours) == len(theirs) and all(a == b or None in (a, b) for a, b in zip(ours, theirs, strict=True))


def _link(value: ir.Value) -> Link | None:
    """The link of an equalized tensor: what reads such a tensor is one weighted node, in the end."""
    while uses := list(value.uses()):
        reader = uses[0].node
        if reader.op_type in ("Conv", "Gemm", "MatMul"):
            return Link(reader.name or reader.outputs[0].name or "", 1 if reader.op_type == "Conv" else -1)
        value = reader.outputs[0]
    return None


def _before(node: ir.Node, value: ir.Value, ends: Mapping[ir.Value, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The points that are read to give `value`, a result of `node`, and the nodes without a counterpart on the way."""
    read: dict[str, None] = {}
    between: dict[str, None] = {}
    last = value.producer()
    todo = [last] if last is not None else []
    seen = set(todo)
    while todo:
        for each in todo.pop().inputs:
            source = each.producer() if each is not None else None
            if each is not None and each in ends:
                read[ends[each]] = None
            elif source is not None and source not in seen:
                seen.add(source)
                todo.append(source)
                if _computes(source) and source is not node and any(map(_is_floating, source.outputs)):
                    between[source.name or source.outputs[0].name or ""] = None
    return tuple(read), tuple(between)


def _precision(node: ir.Node) -> str:
    """The precision that the graph itself gives a node: that of its dequantized inputs, or else of its results."""
    for value in node.inputs:
        source = value.producer() if value is not None else None
        if source is not None and source.op_type == "DequantizeLinear":
            codes = source.inputs[0]
            kind = codes.dtype.name if codes is not None and codes.dtype is not None else ""
            return "fp8" if kind.startswith("FLOAT8") else kind.lower()
    return next(_FLOATS[value.dtype.name] for value in node.outputs if value.dtype is not None and _is_floating(value))


def show(model: ir.Model, tensors: Sequence[str]) -> dict[str, str]:
    """Make these floating-point tensors the outputs of the graph, as float32, and drop what none of them needs.

    Returns the name of the output that shows each.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph, taken = model.graph, names(model.graph)
    values = {value.name: value for node in graph for value in node.outputs}
    shown = {}
    for name in dict.fromkeys(tensors):
        value = values[name]
        if value.dtype != ir.DataType.FLOAT:
            value = cast(graph, value, ir.DataType.FLOAT, unique(f"{name}/shown", taken), taken)
        shown[name] = value
    graph.outputs[:] = list(shown.values())
    RemoveUnusedNodesPass()(model)
    return {name: value.name or "" for name, value in shown.items()}


def give(model: ir.Model, chosen: Sequence[Point]) -> dict[str, str]:
    """Let all that reads these points read new graph inputs instead, float32.

    Returns the name of the input that stands for each point that is read at all.
    """
    import onnx_ir as ir

    graph, taken = model.graph, names(model.graph)
    values = {value.name: value for node in graph for value in node.outputs}
    given = {}
    for point in chosen:
        chain = [values[name] for name in point.chain]
        links = {value.producer() for value in chain[1:]}
        name = unique(f"{point.tensor}/given", taken)
        source = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=chain[-1].shape)
        for value in chain:
            uses = [use for use in value.uses() if use.node not in links]
            if not uses or not _is_floating(value):
                continue
            stand_in = source
            if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
                stand_in = cast(graph, source, value.dtype, unique(f"{value.name}/given_cast", taken), taken)
            for use in uses:
                use.node.replace_input_with(use.idx, stand_in)
        if source.uses():
            graph.inputs.append(source)
            given[point.tensor] = name
    return given
