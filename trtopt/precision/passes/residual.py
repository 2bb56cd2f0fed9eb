"""Rule 4: the skip input of a residual Add is quantized, so that TensorRT can fuse the Add into the convolution.

The rule is TensorRT's (developer guide, "Q/DQ Layer-Placement Recommendations").

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trtopt.graph.query import constant, dims, is_float, producer

if TYPE_CHECKING:
    import onnx_ir as ir

_MAX_ANCESTORS = 200  # residual branches are far shorter


def skip_inputs(graph: ir.Graph, weighted: set[ir.Node]) -> Iterator[tuple[ir.Node, int]]:
    """Yield (Add, index of its skip input) for every residual Add with a quantized convolution as an input.

    When both inputs come from a convolution, the skip is the one with the longer path from their lowest common
    ancestor. An Add is not residual, and left alone, when it broadcasts, when it adds a constant, and when its sum is a
    graph output.

    Args:
        graph: the main graph.
        weighted: the weighted operators that are quantized.
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
        is_conv = [s is not None and s in weighted and s.op_type in ("Conv", "ConvTranspose") for s in sources]
        if all(is_conv) and sources[0] is not sources[1]:
            yield node, _longer_branch(sources, order)
        elif any(is_conv) and not all(is_conv):
            yield node, is_conv.index(False)


def _longer_branch(sources: list[ir.Node | None], order: dict[ir.Node, int]) -> int:
    """Return the index of the source with the longer path from the lowest common ancestor of the two."""
    left, right = (_distances(source, order) for source in sources if source is not None)
    common = left.keys() & right.keys()
    if not common:
        return 1
    ancestor = max(common, key=order.__getitem__)
    return 0 if left[ancestor] > right[ancestor] else 1


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
