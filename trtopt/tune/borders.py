"""Costs of keeping groups where they meet groups that are quantized: an engine has layers there that only convert.

They are estimates from the placement with nothing kept. Where an Add or a pool loses its Q/DQ pair with a kept
convolution, they differ from what is built.

Touches: nothing; it reads an onnx-ir model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from trtopt.graph.query import FLOAT_COMPUTE_FREE, SAME_VALUES, producer
from trtopt.precision.passes.depthwise import behind, is_depthwise
from trtopt.tune.costs import size
from trtopt.tune.search import Costs, Group

if TYPE_CHECKING:
    import onnx_ir as ir

_FUSED = FLOAT_COMPUTE_FREE | SAME_VALUES | {"Relu", "Clip"}
"""Operators that run in the precision of what computes their input, or only move values."""
_PER_BORDER_ELEMENT = 2000.0
"""Multiplications that an element at a border counts as. In INT8 engines of an EfficientNet-Lite0 with some nodes in
FP16 (TensorRT 8.5.3.1, H200, batch 32), a million elements per sample took 0.18 and 0.25 ms, and 10**9 multiplications
0.12 ms less in INT8 than in FP16: 1500 and 2000."""


class Borders(Costs):
    """The tensors from groups to groups, and what each costs if only one side of it is kept."""

    def __init__(self, model: ir.Model, groups: Sequence[Group], sizes: Mapping[str, int]) -> None:
        """Find them.

        Args:
            model: the prepared model.
            groups: the groups of quantized nodes, in graph order.
            sizes: the number of elements of tensors for one sample, by name.
        """
        self._groups = {group.name: group for group in groups}
        self._elements: dict[str, int] = {}
        self._sides: dict[str, set[str]] = {}  # by tensor: the groups that compute it or read it
        self._beside: dict[str, set[str]] = {name: set() for name in self._groups}  # by group: tensors
        self._readers: dict[str, set[str]] = {}  # by depthwise convolution: the groups that read it
        nodes = {node.name: node for node in model.graph}
        of = {nodes[name]: group.name for group in groups for name in group.nodes}
        for node, reader in of.items():
            for value in node.inputs:
                if value is None or not (writers := _writers(value, of)):
                    continue
                tensor = value.name or ""
                self._elements[tensor] = size(value, sizes)
                self._sides.setdefault(tensor, set()).update(writers, {reader})
                for name in (*writers, reader):
                    self._beside[name].add(tensor)
        for node in filter(is_depthwise, of):
            uses = (use for value in behind(node) for use, _ in value.uses() if use in of)
            self._readers.setdefault(of[node], set()).update(of[use] for use in uses)
        # A reader is closed before what it reads: this is the order for `_closed`.
        self._depthwise = [name for name in reversed(self._groups) if name in self._readers]

    def of(self, group: Group, kept: Collection[str]) -> float:
        """Return what keeping a group costs: what quantizing it saves, and what it adds to the conversions."""
        before, after = self._closed(kept), self._closed({*kept, group.name})
        more = after - before
        tensors = {tensor for name in more for tensor in self._beside[name]}
        crossed = sum(self._elements[each] * (self._cross(each, after) - self._cross(each, before)) for each in tensors)
        return sum(self._groups[name].saving for name in more) + _PER_BORDER_ELEMENT * crossed

    def islands(self, kept: Sequence[Group]) -> list[list[Group]]:
        """Return the groups, those in one list that are connected by tensors, in graph order."""
        found: list[list[Group]] = []
        names = {group.name for group in kept}
        for group in (each for name, each in self._groups.items() if name in names):
            tensors = self._beside[group.name]
            joined = [island for island in found if any(tensors & self._beside[each.name] for each in island)]
            found = [island for island in found if island not in joined]
            found.append([*chain.from_iterable(joined), group])
        return found

    def whole(self, kept: Sequence[Group]) -> list[Group]:
        """Return the groups, and each depthwise convolution that one of them reads, in graph order.

        TensorRT 8.5.3.1 has no INT8 kernel for it with a 16-bit output, and computes it in FP16 or FP32 anyway, between
        reformats.
        """
        closed = self._closed({group.name for group in kept})
        return [group for name, group in self._groups.items() if name in closed]

    def _closed(self, kept: Collection[str]) -> set[str]:
        found = {*kept}
        for name in self._depthwise:
            if not found.isdisjoint(self._readers[name]):
                found.add(name)
        return found

    def _cross(self, tensor: str, kept: set[str]) -> bool:
        return len({name in kept for name in self._sides[tensor]}) > 1


def _writers(value: ir.Value | None, of: Mapping[ir.Node, str]) -> set[str]:
    """Return the groups that compute a tensor, through operators that have no precision of their own."""
    found, todo, visited = set(), [value], set()
    while todo:
        node = producer(todo.pop())
        if node is None or node in visited:
            continue
        visited.add(node)
        if node in of:
            found.add(of[node])
        elif node.op_type in _FUSED:
            todo += node.inputs
    return found
