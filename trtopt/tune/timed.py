"""Costs from the times of an engine's layers: what each node takes, and what quantizing it saves.

A layer of an engine computes several nodes, whose names it lists. Its time is divided among them by their work. A
reformat belongs to the nodes beside it, and a Q or DQ that did not fuse to the nodes that it is for: so what
lowering a node costs around it counts against it.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.tune.costs import Speed
from trtopt.tune.search import Group
from trtopt.types import EngineLayer, TimedLayer

TOLERANCE = 0.02
"""Share of its time in 16 bits that a group must save at least."""

Series = npt.NDArray[np.float64]
"""Times in milliseconds, float64 [runs]."""


Work = Mapping[str, float]
"""Work of nodes by name, in any unit, by which the times of layers are divided."""


def joined(layers: Sequence[EngineLayer], times: Mapping[str, Sequence[float]]) -> tuple[TimedLayer, ...]:
    """Return the layers of an engine with their times in milliseconds, given these by name."""
    return tuple(
        TimedLayer(name=layer.name, nodes=layer.nodes, ms=tuple(times.get(layer.name, ()))) for layer in layers
    )


def total(layers: Sequence[TimedLayer]) -> Series:
    """Return the time of all layers, float64 [runs]."""
    return np.asarray(np.sum([layer.ms for layer in layers if layer.ms] or [(0.0,)], axis=0), np.float64)


def by_node(layers: Sequence[TimedLayer], work: Work) -> dict[str, Series]:
    """Return the time of each node; what belongs to none has the name ""."""
    found: dict[str, Series] = {}
    for layer in layers:
        if not layer.ms:
            continue
        nodes = layer.nodes or ("",)
        shares = np.array([work.get(node, 0.0) for node in nodes])
        shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(nodes), 1 / len(nodes))
        for node, share in zip(nodes, shares, strict=True):
            found[node] = found.get(node, 0.0) + share * np.array(layer.ms)
    return found


def measured(half: Sequence[TimedLayer], quantized: Sequence[TimedLayer], work: Work) -> Speed:
    """Return the costs of a network from the layers of two engines: with no node quantized, and with all of them."""
    before = {node: float(np.median(series)) for node, series in by_node(half, work).items()}
    after = {node: float(np.median(series)) for node, series in by_node(quantized, work).items()}
    return Speed(
        cost=lambda node, _: before.get(node.name or "", 0.0),
        saving=lambda node, _: before.get(node.name or "", 0.0) - after.get(node.name or "", 0.0),
        rest=before.get("", 0.0),
        quantized=float(np.median(total(quantized))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """A group that quantization does not make faster, with its median times in milliseconds."""

    group: Group
    half: float
    quantized: float


def slower(
    groups: Sequence[Group], half: Sequence[TimedLayer], quantized: Sequence[TimedLayer], work: Work
) -> list[Slower]:
    """Return the groups that are not faster by 2 %, or by the noise of their times where that is larger.

    A group that no layer of either engine names is not among them: its time is not known.
    """
    before, after = by_node(half, work), by_node(quantized, work)
    found = []
    for group in groups:
        old, new = _sum(before, group.nodes), _sum(after, group.nodes)
        if old is None or new is None:
            continue
        least = max(TOLERANCE * float(np.median(old)), math.hypot(_noise(old), _noise(new)))
        if float(np.median(old) - np.median(new)) <= least:
            found.append(Slower(group=group, half=float(np.median(old)), quantized=float(np.median(new))))
    return found


def is_slower(new: Series, old: Series) -> bool:
    """Return whether an engine is slower than another one, by more than 2 % and the noise of their times."""
    least = max(TOLERANCE * float(np.median(old)), math.hypot(_noise(old), _noise(new)))
    return float(np.median(new) - np.median(old)) > least


def _sum(times: Mapping[str, Series], nodes: Sequence[str]) -> Series | None:
    known = [times[node] for node in nodes if node in times]
    return np.sum(known, axis=0) if known else None


def _noise(series: Series) -> float:
    """Return twice the standard error of the median of a series, from its quartiles (1.25 sigma over root n)."""
    low, high = np.quantile(series, (0.25, 0.75))
    return float(2 * 1.253 * (high - low) / 1.349 / math.sqrt(len(series)))
