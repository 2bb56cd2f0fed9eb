"""Nodes that the user keeps in higher precision: patterns of `--keep` and `--only` resolved to the nodes of a model.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from trtopt.errors import UsageError
from trtopt.graph.query import FLOAT_COMPUTE_FREE, float_nodes
from trtopt.types import Keep, Only

if TYPE_CHECKING:
    import onnx_ir as ir

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BLOCK = "block:"
NOT_NAMED = "not named by --only"
"""The reason of the nodes that `--only` keeps."""


def resolve(model: ir.Model, keeps: Sequence[Keep], only: Only | None = None) -> dict[str, Keep]:
    """Return how each kept node is kept, by its name; with `only`, every node that it does not name is kept.

    A pattern is the name of a node, a glob over names, an operator, `first` or `last` (of the weighted operators), or
    `block:PREFIX` for the nodes whose names begin so. If several match a node, the last one counts.

    Raises:
        UsageError: a pattern matches no node; the message suggests the nearest name.
    """
    nodes = [node for node in float_nodes(model.graph) if node.op_type not in FLOAT_COMPUTE_FREE]
    kept: dict[str, Keep] = {}
    if only is not None:
        lowered = {name for pattern in only.patterns for name in _named("--only", pattern, nodes)}
        others = [node.name or "" for node in nodes if node.name not in lowered]
        kept = {name: Keep(pattern=name, precision=only.precision, reason=NOT_NAMED) for name in others}
    for keep in keeps:
        kept |= dict.fromkeys(_named("--keep", keep.pattern, nodes), keep)
    return kept


def _named(flag: str, pattern: str, nodes: Collection[ir.Node]) -> list[str]:
    """Return the names of the nodes that the pattern of a flag matches."""
    # A node of exactly that name comes first: a name may also be a glob or an operator.
    names = [node.name or "" for node in nodes if node.name == pattern]
    names = names or [node.name or "" for node in nodes if _matches(node, pattern)]
    if pattern in ("first", "last") and not names:
        weighted = [node.name or "" for node in nodes if node.op_type in _WEIGHTED]
        names = weighted[:1] if pattern == "first" else weighted[-1:]
    if not names:
        raise _unknown(flag, pattern, nodes)
    return names


def _matches(node: ir.Node, pattern: str) -> bool:
    name = node.name or ""
    if pattern.startswith(_BLOCK):
        return name.startswith(pattern.removeprefix(_BLOCK))
    return pattern == node.op_type or fnmatchcase(name, pattern)


def _unknown(flag: str, pattern: str, nodes: Collection[ir.Node]) -> UsageError:
    known = list(dict.fromkeys([node.name or "" for node in nodes] + [node.op_type for node in nodes]))
    near = difflib.get_close_matches(pattern.removeprefix(_BLOCK), known, n=1, cutoff=0.5)
    return UsageError(
        f"{flag} {pattern}: no node that computes has that name or operator in the prepared model",
        fix=f"Did you mean {near[0]}?" if near else "`trtopt inspect MODEL --nodes` lists the nodes",
    )
