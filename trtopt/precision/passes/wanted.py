"""Nodes that the user keeps in higher precision: patterns of `--keep` resolved to the nodes of a model.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from trtopt.errors import UsageError
from trtopt.graph.query import FLOAT_COMPUTE_FREE, float_nodes
from trtopt.types import Keep

if TYPE_CHECKING:
    import onnx_ir as ir

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BLOCK = "block:"


def resolve(model: ir.Model, keeps: Sequence[Keep]) -> dict[str, Keep]:
    """Return how each kept node is kept, by its name.

    A pattern is the name of a node, a glob over names, an operator, `first` or `last` (of the weighted operators), or
    `block:PREFIX` for the nodes whose names begin so. If several match a node, the last one counts.

    Raises:
        UsageError: a pattern matches no node; the message suggests the nearest name.
    """
    nodes = [node for node in float_nodes(model.graph) if node.op_type not in FLOAT_COMPUTE_FREE]
    kept: dict[str, Keep] = {}
    for keep in keeps:
        # A node of exactly that name comes first: a name may also be a glob or an operator.
        names = [node.name or "" for node in nodes if node.name == keep.pattern]
        names = names or [node.name or "" for node in nodes if _matches(node, keep.pattern)]
        if keep.pattern in ("first", "last") and not names:
            weighted = [node.name or "" for node in nodes if node.op_type in _WEIGHTED]
            names = weighted[:1] if keep.pattern == "first" else weighted[-1:]
        if not names:
            raise _unknown(keep.pattern, nodes)
        kept |= dict.fromkeys(names, keep)
    return kept


def _matches(node: ir.Node, pattern: str) -> bool:
    name = node.name or ""
    if pattern.startswith(_BLOCK):
        return name.startswith(pattern.removeprefix(_BLOCK))
    return pattern == node.op_type or fnmatchcase(name, pattern)


def _unknown(pattern: str, nodes: Sequence[ir.Node]) -> UsageError:
    known = list(dict.fromkeys([node.name or "" for node in nodes] + [node.op_type for node in nodes]))
    near = difflib.get_close_matches(pattern.removeprefix(_BLOCK), known, n=1, cutoff=0.5)
    return UsageError(
        f"--keep {pattern}: no node of the prepared model has that name or operator",
        fix=f"Did you mean {near[0]}?" if near else "`trtopt inspect MODEL --nodes` lists the nodes",
    )
