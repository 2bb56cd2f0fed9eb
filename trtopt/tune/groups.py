"""The groups of nodes that are quantized together, and what quantizing each of them saves.

Weighted operators that read the same tensor share its Q/DQ pair, such as the projections to query, key and value: if
one of them stayed in higher precision, the tensor would be needed in both. Residual Adds and average pools are groups
of their own: they save memory traffic only.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trtopt.precision.passes.operands import weighted_inputs
from trtopt.precision.passes.placement import Placement
from trtopt.tune.search import Group

if TYPE_CHECKING:
    import onnx_ir as ir


def groups(placement: Placement, saving: Callable[[ir.Node], float]) -> tuple[Group, ...]:
    """Return the groups of the quantized nodes, in graph order.

    Args:
        placement: the sites to quantize.
        saving: what quantizing a node saves, in any unit.
    """
    members: dict[tuple[str, str], list[ir.Node]] = {}  # a node and a tensor may have the same name
    for site in placement.sites:
        if site.index == 0 or not weighted_inputs(site.node):
            key = ("tensor", site.scale_from) if weighted_inputs(site.node) else ("node", site.node.name or "")
            nodes = members.setdefault(key, [])
            if site.node not in nodes:
                nodes.append(site.node)
    return tuple(
        Group(
            name=nodes[0].name or "",
            nodes=tuple(node.name or "" for node in nodes),
            saving=sum(saving(node) for node in nodes),
        )
        for nodes in members.values()
    )
