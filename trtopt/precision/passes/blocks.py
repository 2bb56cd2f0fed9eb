"""Measurement of what FP16 cannot hold: copies of parts of the FP32 graph whose inputs are rounded to the 16-bit type.

The result of a node depends on the rounding of its inputs. Usually the relative errors of both are alike. Some nodes
magnify them: the sine of a large angle, or the difference of two large averages. Keeping such a node in FP32 is not
enough, as its inputs have been rounded: the nodes that compute them must be kept, too, back to where rounding does no
harm. These nodes form a block.

Touches: nothing; it reads the onnx-ir model it is given, and returns new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trtopt.formats import Format
from trtopt.graph.query import (
    FLOAT_COMPUTE_FREE,
    add_initializer,
    cast,
    constant,
    float_nodes,
    is_float,
    producer,
    unique,
)
from trtopt.precision.passes.appender import Appender
from trtopt.precision.passes.half import supports, to_half
from trtopt.precision.passes.masks import MASK

if TYPE_CHECKING:
    import onnx_ir as ir

ENOUGH = 50.0
"""SQNR in dB that a node's result must have when its inputs are rounded to FP16.

The median is 73 dB on the six trained networks of docs/quality.md, and the lowest of their 963 nodes has 57 dB.
"""
BIT = 6.0
"""SQNR in dB of one bit of the mantissa. BF16 has 3 less than FP16."""

DEPTHS = (0, 1, 2, 3, 4, 6, 8)
"""Numbers of steps back from a node that are tried."""

_MAX_NODES = 32
_TO_INTEGERS = frozenset({"Floor", "Ceil", "Round"})
_DISCRETE = frozenset({"BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})
_NOT_COPIED = frozenset(
    "Range NonZero Unique Upsample NonMaxSuppression Compress Loop If Scan EyeLike RandomNormal RandomNormalLike "
    "RandomUniform RandomUniformLike Bernoulli Multinomial QuantizeLinear DequantizeLinear".split()
)
"""Operators whose output shape depends on values, that draw random numbers, or that have subgraphs."""


def enough(half: Format) -> float:
    """Return the SQNR in dB that a node's result must have when its inputs are rounded to a 16-bit type."""
    return ENOUGH - BIT * (10 - half.mantissa)


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes that compute from rounded inputs.

    Attributes:
        end: the name of the last node, whose result is measured.
        nodes: the names of all.
        kept: whether they stay in FP32: then graph inputs, constants, and what they pass to each other are exact.
    """

    end: str
    nodes: frozenset[str]
    kept: bool


def single_nodes(model: ir.Model) -> list[Block]:
    """Return a block for each node that computes a floating-point tensor from another, in graph order."""
    return [
        Block(node.name or "", frozenset({node.name or ""}), kept=False)
        for node in _measured(model)
        if node.op_type not in FLOAT_COMPUTE_FREE and is_float(node.outputs[0])
    ]


def discrete(model: ir.Model) -> list[Block]:
    """Return the largest block of each node that computes integers, of any type, or conditions from numbers.

    Their error shows at the end only: 4095 is rounded to 4096 before it is divided by 7 and cut to an index.
    """
    ends = [node.name or "" for node in _measured(model) if _is_discrete(node)]
    return [next(block for depth in reversed(DEPTHS) if (block := grown(model, end, depth))) for end in ends]


def _measured(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes that read numbers, and whose result can be measured."""
    for node in float_nodes(model.graph):
        if _is_copied(node) and any(is_float(value) for value in node.inputs):
            yield node


def _is_discrete(node: ir.Node) -> bool:
    """Return whether the result of a node consists of integers, of any type, or of conditions."""
    dtype = node.outputs[0].dtype
    return node.op_type in _TO_INTEGERS or (dtype is not None and dtype.name in _DISCRETE)


def grown(model: ir.Model, end: str, depth: int, *, layers: bool = False) -> Block | None:
    """Return the block of the nodes up to `depth` steps before the node `end`; None if it would be too large.

    Weighted operators end it, unless `layers` is set: their results are rounded once, after a sum in FP32.
    """
    by_name = {node.name: node for node in model.graph}
    block, step = {by_name[end]}, [by_name[end]]
    for _ in range(depth):
        before = [producer(value) for node in step for value in node.inputs if is_float(value)]
        step = [
            node
            for node in dict.fromkeys(before)
            if node is not None and node not in block and _may_grow(node, layers=layers)
        ]
        block.update(step)
    return Block(end, frozenset(node.name or "" for node in block), kept=True) if len(block) <= _MAX_NODES else None


def _is_copied(node: ir.Node) -> bool:
    return node.op_type not in _NOT_COPIED and node.domain in ("", "ai.onnx")


def _may_grow(node: ir.Node, *, layers: bool) -> bool:
    """Return whether a node may be part of a block before its end, which layers may if `layers` is set."""
    weights = [constant(value) for value in node.inputs] if node.op_type in _WEIGHTED else []
    # The product of positions and frequencies is not a layer: it has one row of constants.
    is_layer = any(weight is not None and weight.size > max(weight.shape, default=1) for weight in weights)
    return _is_copied(node) and (layers or not is_layer)


@dataclass(slots=True)
class _Copy:
    """The state of the copy of a graph: `rounded` are the values that have been rounded."""

    add: Appender
    half: Format
    opset: int
    rounded: dict[ir.Value, ir.Value] = field(default_factory=dict)


def measuring(model: ir.Model, half: Format, blocks: Sequence[Block]) -> ir.Model:
    """Return a copy of the model whose outputs are `error` and `signal`, float32 [blocks] each.

    They are the energies of each block's error, and of its result in FP32. Magnitudes that mean a mask's infinity
    count as half of the type's maximum. Of integers and conditions they are the numbers of values that differ, and of
    all values.
    """

    model = model.clone()
    graph = model.graph
    by_name = {node.name or "": node for node in graph}
    order = {node: index for index, node in enumerate(graph)}
    copy = _Copy(Appender(graph), half, model.opset_imports.get("", 1))
    energies: list[tuple[ir.Value, ir.Value]] = []
    for block in blocks:
        nodes = sorted((by_name[name] for name in block.nodes), key=order.__getitem__)
        exact = by_name[block.end].outputs[0]
        compared = _counts if _is_discrete(by_name[block.end]) else _energies
        energies.append(compared(copy, exact, _copied(copy, nodes, kept=block.kept)[exact]))
    del graph.outputs[:]
    for index, name in enumerate(("error", "signal")):
        copy.add.output(f"trtopt/{name}", [pair[index] for pair in energies])
    return model


def _copied(copy: _Copy, nodes: Sequence[ir.Node], *, kept: bool) -> dict[ir.Value, ir.Value]:
    """Append copies of the nodes of a block, with rounded inputs, and return their results by the originals."""
    import onnx_ir as ir

    results: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        supported = (supports(node, copy.opset, copy.half) or ([], []))[0]
        # An operator that does not support the type stays in FP32, but the results that it reads are rounded.
        in_fp32 = kept or not any(supported)
        inputs: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            is_read_as_half = is_float(value) and (not any(supported) or supported[index])
            if value is None or value in results:
                passed = results.get(value) if value else None
                inputs.append(_rounded(copy, passed) if passed is not None and is_read_as_half and not kept else passed)
            elif is_read_as_half and not (in_fp32 and producer(value) is None):
                inputs.append(_rounded(copy, value))
            else:
                inputs.append(value)
        outputs = [
            ir.Value(name=unique(f"{value.name}/copy", copy.add.taken) if value.name else "", type=value.type)
            for value in node.outputs
        ]
        name = unique(f"{node.name}/copy", copy.add.taken)
        copy.add.graph.append(
            ir.node(node.op_type, inputs, dict(node.attributes), domain=node.domain, outputs=outputs, name=name)
        )
        results.update(zip(node.outputs, outputs, strict=True))
    return results


def _rounded(copy: _Copy, value: ir.Value) -> ir.Value:
    """Return the value rounded to the 16-bit type, in FP32."""
    import onnx_ir as ir

    if value in copy.rounded:
        return copy.rounded[value]
    array = constant(value)
    if array is not None:
        name = unique(f"{value.name}/rounded", copy.add.taken)
        wide = to_half(array, copy.half).astype(np.float32)
        result = add_initializer(copy.add.graph, name, wide, ir.DataType.FLOAT)
    else:
        low = cast(copy.add.graph, value, copy.half.dtype, unique(f"{value.name}/low", copy.add.taken), copy.add.taken)
        result = cast(
            copy.add.graph, low, ir.DataType.FLOAT, unique(f"{value.name}/rounded", copy.add.taken), copy.add.taken
        )
    copy.rounded[value] = result
    return result


def _energies(copy: _Copy, exact: ir.Value, approximate: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Append the energies of the error and of the exact result, float32 [1] each."""
    limit = min(copy.half.max / 2, MASK)
    add = copy.add
    low, high = (add.constant(np.array(sign * limit, np.float32)) for sign in (-1, 1))
    signal, result = (add.node("Clip", [value, low, high]) for value in (exact, approximate))
    return add.energy(add.node("Sub", [result, signal])), add.energy(signal)


def _counts(copy: _Copy, exact: ir.Value, approximate: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Append the number of values that differ, and that of all values, float32 [1] each."""
    add = copy.add
    numbers = [add.node("Cast", [value], {"to": 1}) for value in (exact, approximate)]
    zeros = add.node("Sub", [numbers[0], numbers[0]])
    return add.energy(add.node("Sign", [add.node("Sub", numbers)])), add.energy(add.node("Cos", [zeros]))
