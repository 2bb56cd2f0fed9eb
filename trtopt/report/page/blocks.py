"""The graph as `report.html` draws it: blocks of nodes in graph order, each node with its precision and its noise.

Touches: nothing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trtopt.report.page import words
from trtopt.types import Decision, LayerDrift, Report
from trtopt.wording import counted

_MOST_BLOCKS = 40
MOST_MARKS = 4000
"""Largest number of nodes that are drawn; each takes about 50 bytes."""

_LEAST_NODES = 24
"""Number of nodes up to which the graph is one block."""

_DEEPEST = 8
_SEPARATORS = re.compile(r"[/.]")
_BEST, _WORST = 60.0, 0.0
"""SQNR in dB that is drawn as no noise, and as the most noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node: its place in the graph from 1, and its drift if that was measured."""

    place: int
    node: str
    op: str
    precision: str
    reason: str = ""
    drift: LayerDrift | None = None

    @property
    def noise(self) -> float | None:
        """Height of the bar for its SQNR, from 0 to 1; None if it is unknown."""
        if self.drift is None:
            return None
        sqnr = self.drift.sqnr
        if math.isnan(sqnr):
            return 1.0
        return min(max((_BEST - sqnr) / (_BEST - _WORST), 0.0), 1.0)

    @property
    def title(self) -> str:
        """Description of the node in one line."""
        known = f", {words.decibels(self.drift.sqnr)}" if self.drift else ""
        return f"{self.place}: {self.node} ({self.op}), {self.precision}{known}"


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring nodes that share the beginning of their names."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def counts(self) -> str:
        """Number of nodes by precision, as text."""
        counts = Counter(node.precision for node in self.nodes)
        return ", ".join(f"{count} {precision}" for precision, count in counts.most_common())

    @property
    def lowest(self) -> str:
        """Lowest SQNR of the nodes, as text; empty if it was not measured."""
        sqnrs = [node.drift.sqnr for node in self.nodes if node.drift is not None]
        return words.decibels(min(sqnrs, key=lambda x: -math.inf if math.isnan(x) else x)) if sqnrs else ""

    @property
    def label(self) -> str:
        """Description of the block for those who cannot see it."""
        lowest = f"; lowest SQNR {self.lowest}" if self.lowest else ""
        return f"{counted(len(self.nodes), 'node')}: {self.counts}{lowest}"


def nodes(report: Report) -> list[Node]:
    """Return the nodes in graph order: those with a decision, or else those whose drift was measured."""
    drifts = {layer.node: layer for layer in report.layers.layers} if report.layers else {}
    decisions: Sequence[Decision] = report.typed.decisions if report.typed else ()
    if not decisions:
        return [
            Node(place=place, node=layer.node, op=layer.op, precision=layer.precision, drift=layer)
            for place, layer in enumerate(drifts.values(), 1)
        ]
    return [
        Node(
            place=place,
            node=each.node,
            op=each.op,
            precision=each.precision,
            reason=each.reason,
            drift=drifts.get(each.node),
        )
        for place, each in enumerate(decisions, 1)
    ]


def blocks(report: Report) -> list[Block]:
    """Return the graph as at most about `_MOST_BLOCKS` blocks, along the hierarchy of its nodes' names, if any."""
    found = nodes(report)
    if len(found) <= _LEAST_NODES:
        return [Block("graph", tuple(found))] if found else []
    by_depth = [list(_runs(found, depth)) for depth in range(1, _DEEPEST)]
    finest = max((runs for runs in by_depth if len(runs) <= _MOST_BLOCKS), key=len, default=[])
    if len(finest) > 1:
        return finest
    size = max(math.ceil(len(found) / _MOST_BLOCKS), _LEAST_NODES)
    parts = [found[start : start + size] for start in range(0, len(found), size)]
    return [Block(f"nodes {part[0].place} to {part[-1].place}", tuple(part)) for part in parts]


def _runs(found: Sequence[Node], depth: int) -> Iterator[Block]:
    """Yield runs of nodes whose names begin with the same `depth` parts; a node on its own joins the run before it."""
    runs: list[tuple[str, list[Node]]] = []
    for name, group in itertools.groupby(found, key=lambda node: _prefix(node.node, depth)):
        members = list(group)
        if runs and (len(members) == 1 or name == runs[-1][0]):
            runs[-1][1].extend(members)
        else:
            runs.append((name, members))
    for name, members in runs:
        last = _prefix(members[-1].node, depth)
        yield Block(name if last == name else f"{name} to {last}", tuple(members))


def _prefix(name: str, depth: int) -> str:
    parts = [part for part in _SEPARATORS.split(name) if part]
    return "/".join(parts[:depth][: max(len(parts) - 1, 1)])
