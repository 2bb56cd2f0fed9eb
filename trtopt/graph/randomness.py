"""Nodes that draw random numbers.

Touches: reads the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.graph.file import load_proto

if TYPE_CHECKING:
    import onnx

_OPERATORS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_TRAINING = "Dropout"
"""It draws random numbers where its third input, `training_mode`, is given (ONNX operator set 12)."""


def random_nodes(path: Path) -> list[str]:
    """Return the nodes of an ONNX file that draw random numbers, those of subgraphs too, as `name (Operator)`."""
    proto = load_proto(path)
    graphs = [proto.graph.node, *(function.node for function in proto.functions)]
    return [f"{node.name or node.output[0]} ({node.op_type})" for nodes in graphs for node in _random(nodes)]


def _random(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        training = node.op_type == _TRAINING and len(node.input) > 2 and bool(node.input[2])
        if node.domain in ("", "ai.onnx") and (node.op_type in _OPERATORS or training):
            yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _random(graph.node)
