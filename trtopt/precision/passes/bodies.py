"""Decisions for the nodes in the bodies of If, Loop and Scan, which no precision changes.

Touches: nothing; it reads an onnx-ir graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.graph.query import FLOAT_COMPUTE_FREE, float_nodes
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir


def decisions(graph: ir.Graph) -> tuple[Decision, ...]:
    """Return the decision for each node that does arithmetic in a body of the graph: all of them stay in FP32."""
    return tuple(
        Decision(
            node=node.name or "",
            op=node.op_type,
            precision="fp32",
            reason="in the body of an If, Loop or Scan, which stays in FP32",
        )
        for subgraph in graph.subgraphs()
        for node in float_nodes(subgraph)
        if node.op_type not in FLOAT_COMPUTE_FREE
    )
