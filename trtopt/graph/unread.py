"""Inputs that no output of a graph depends on, such as the token types of a transformer that has no embedding for them.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def unread(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Return the names of the inputs that no output depends on. Nodes must be sorted topologically."""
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(consumed(node))
    return tuple(value.name for value in graph.input if value.name not in needed)


def consumed(node: onnx.NodeProto) -> Iterable[str]:
    """Yield the names of the tensors that a node and its subgraphs consume."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            # An output of a subgraph may be a tensor of the enclosing graph.
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from consumed(inner)
