"""Rule 4: the skip input of a residual Add is quantized, so that TensorRT can fuse the Add into the convolution.

The rule is TensorRT's (developer guide, "Q/DQ Layer-Placement Recommendations").

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from trtopt.graph.query import constant, dims, is_float, producer

if TYPE_CHECKING:
    import onnx_ir as ir

_MAX_ANCESTORS = 200  # residual branches are far shorter


def skip_inputs(
    graph: ir.Graph, weighted: set[ir.Node], kept: Collection[ir.Node] = ()
) -> Iterator[tuple[ir.Node, int]]:
    """Yield (Add, index of its skip input) for every residual Add with a quantized convolution as an input.

    An input that the other one is computed from is the skip: the last convolution of the block then fuses with the Add.
    (With the roles reversed, TensorRT 8.5.3.1 did not fuse 5 of the 9 Adds of an EfficientNet-Lite0 on an H100.) When
    neither is computed from the other and both come from a convolution, the skip is the one with the longer path from
    their lowest common ancestor. An Add is not residual, and left alone, when it broadcasts, when it adds a constant,
    when its sum is a graph output, and when no weighted operator is between the skip and the other input: then it is
    part of an activation function, such as the x + 0.044715 x**3 of a GELU.

    An operator that is kept does not make another input the skip: that has no scale, as calibration did not observe it.

    Args:
        graph: the main graph.
        weighted: the weighted operators that are quantized.
        kept: those that would be, but are kept in higher precision.
    """
    order = {node: index for index, node in enumerate(graph)}
    for node in graph:
        if node.op_type != "Add" or not all(is_float(v) and constant(v) is None for v in node.inputs):
            continue
        left_shape, right_shape = (dims(value) for value in node.inputs)
        if left_shape is None or right_shape is None:
            continue
        # The batch dimension is not compared: it may be known for one of the inputs only.
        broadcasts = left_shape[1:] != right_shape[1:]
        if broadcasts or node.outputs[0].is_graph_output():
            continue
        sources = [producer(value) for value in node.inputs]
        # The input that comes from the convolution gets no Q/DQ pair: between Conv and Add it would prevent the fusion.
        convs = [s is not None and s.op_type in ("Conv", "ConvTranspose") for s in sources]
        is_conv = [conv and source in weighted for conv, source in zip(convs, sources, strict=True)]
        could_be = [
            quantized or (conv and s in kept) for quantized, conv, s in zip(is_conv, convs, sources, strict=True)
        ]
        if not any(is_conv) or sources[0] is sources[1]:
            continue
        left, right = (_distances(source, order) if source in order else {} for source in sources)
        if sources[0] in right or sources[1] in left:
            skip, branch = (0, right) if sources[0] in right else (1, left)
            if weighted & _between(sources[skip], branch, order):
                yield node, skip
        elif all(could_be):
            skip = _longer_branch(left, right, order)
            if is_conv[1 - skip]:
                yield node, skip
        else:
            yield node, could_be.index(False)


def _longer_branch(left: dict[ir.Node, int], right: dict[ir.Node, int], order: dict[ir.Node, int]) -> int:
    """Return the index of the branch with the longer path from the lowest common ancestor, given the distances."""
    common = left.keys() & right.keys()
    if not common:
        return 1
    ancestor = max(common, key=order.__getitem__)
    return 0 if left[ancestor] > right[ancestor] else 1


def _between(start: ir.Node | None, ancestors: Iterable[ir.Node], order: dict[ir.Node, int]) -> set[ir.Node]:
    """Return those of the ancestors of a node that are computed from `start`, which is one of them."""
    found = {start}
    for node in sorted(ancestors, key=order.__getitem__):
        if any(predecessor in found for predecessor in node.predecessors()):
            found.add(node)
    return {node for node in found if node is not None and node is not start}


def _distances(start: ir.Node, order: dict[ir.Node, int]) -> dict[ir.Node, int]:
    """Return the length of the longest path from each ancestor to `start`, for at most `_MAX_ANCESTORS` of them."""
    distances = {start: 0}
    todo = {start}
    while todo and len(distances) < _MAX_ANCESTORS:
        # The last in graph order: all its successors have been visited, so its own distance is final.
        node = max(todo, key=order.__getitem__)
        todo.remove(node)
        for predecessor in node.predecessors():
            if predecessor in order:
                distances[predecessor] = max(distances.get(predecessor, 0), distances[node] + 1)
                todo.add(predecessor)
    return distances
