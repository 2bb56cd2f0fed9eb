"""Rule 4: of a residual Add, the skip input is quantized, so that TensorRT can fuse the Add into the convolution.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trtopt.precision.graph import constant, dims, is_float, producer

if TYPE_CHECKING:
    import onnx_ir as ir

_LOOK_BACK = 200  # nodes; a residual branch is far shorter


def skip_inputs(graph: ir.Graph, weighted: set[ir.Node]) -> Iterator[tuple[ir.Node, int]]:
    """Yield (Add, index of its skip input) for every residual Add that has a quantized convolution as an input.

    When both inputs come from a convolution, the skip is the one with the longer path from their lowest common
    ancestor. An Add that broadcasts, that adds a constant, or whose sum is a graph output, is left alone.
    """
    order = {node: index for index, node in enumerate(graph)}
    for node in graph:
        if node.op_type != "Add" or not all(is_float(v) and constant(v) is None for v in node.inputs):
            continue
        shapes = [dims(value) for value in node.inputs]
        if (
            shapes[0] is None
            or shapes[1] is None
            or shapes[0][1:] != shapes[1][1:]
            or node.outputs[0].is_graph_output()
        ):
            continue
        sources = [producer(value) for value in node.inputs]
        convs = [s is not None and s in weighted and s.op_type in ("Conv", "ConvTranspose") for s in sources]
        if all(convs) and sources[0] is not sources[1]:
            yield node, _longer_branch(sources, order)
        elif any(convs) and not all(convs):
            yield node, convs.index(False)


def _longer_branch(sources: list[ir.Node | None], order: dict[ir.Node, int]) -> int:
    left, right = (_distances(source, order) for source in sources if source is not None)
    common = left.keys() & right.keys()
    if not common:
        return 1
    ancestor = max(common, key=order.__getitem__)
    return 0 if left[ancestor] > right[ancestor] else 1


def _distances(start: ir.Node, order: dict[ir.Node, int]) -> dict[ir.Node, int]:
    """Length of the longest path back from `start` to each of its ancestors, nearest `_LOOK_BACK` of them."""
    distance = {start: 0}
    todo = {start}
    while todo and len(distance) < _LOOK_BACK:
        node = max(todo, key=order.__getitem__)  # every path into it has been walked: it is the last in graph order
        todo.remove(node)
        for before in node.predecessors():
            if before in order:
                distance[before] = max(distance.get(before, 0), distance[node] + 1)
                todo.add(before)
    return distance
