"""Inputs that no output of a graph depends on, such as the token types of a transformer that has no embedding for them.

Touches: reads the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.graph.file import load_proto

if TYPE_CHECKING:
    import onnx


def unread(path: Path) -> tuple[str, ...]:
    """Return the names of the inputs of a model that none of its outputs depends on.

    Raises:
        ModelError: the model cannot be read.
    """
    graph = load_proto(path).graph
    needed = {value.name for value in graph.output}
    # Nodes are sorted topologically, so one pass from the end finds all that are needed.
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
