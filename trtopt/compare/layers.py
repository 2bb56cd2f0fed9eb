"""Drift layer by layer: the tensors of the typed graph compared with those of the FP32 graph over a few samples.

The typed graph runs twice for each sample:

- As it is. The difference between a tensor and FP32's is the drift up to that tensor.
- With FP32's tensors as the inputs of every node. The difference at the output of a node is then the quantization error
  of this node alone: of its quantized or rounded inputs, of its weights, and of its own rounding.

Drift alone does not show which layer causes it, because a layer may amplify or hide the errors of earlier layers.

Touches: writes copies of both graphs into the folder that is passed in, and deletes them; onnxruntime runs them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtopt.compare import jump
from trtopt.compare.rescale import Rescaling
from trtopt.compare.taps import Point, points
from trtopt.compare.views import Subject, Tally, load, open_views
from trtopt.data.dataset import Dataset
from trtopt.errors import DataError
from trtopt.events import Emit, Progress
from trtopt.graph.query import dims
from trtopt.types import LayerDrift, Layers

if TYPE_CHECKING:
    import onnx_ir as ir


SAMPLES = 8
"""Number of samples, spread over the dataset. A few are enough, because a broken layer is broken for every sample."""

BUDGET = 256 << 20
"""Largest size, in bytes, of one sample's FP32 tensors in one pass. A pass needs about five times as much memory."""


def look(subject: Subject, dataset: Dataset, *, emit: Emit, workspace: Path, budget: int = BUDGET) -> Layers:
    """Return the drift at every node of the typed graph that has a counterpart in the FP32 graph, in graph order.

    Tensors that are always 0 in FP32 have no SQNR and are left out. Values that are NaN or infinite in FP32, or at
    least 1e9 in magnitude, are ignored. Attention masks use such values for infinity; in 16 bits they are smaller, but
    have the same effect.

    `workspace` is a folder for temporary copies of the graphs. A network whose tensors exceed `budget` takes several
    passes, with the same result.

    Raises:
        DataError: there are no samples, or one cannot be loaded or run.
        ModelError: onnxruntime cannot load a graph, or the shape of a tensor depends on the values of others.
    """
    if not len(dataset):
        raise DataError(f"{dataset.source} holds no samples", fix="Give a few samples like those in production")
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int)).tolist()
    feed = dataset.load(indices[0])
    reference = load(subject.reference, feed)
    matched = {point.tensor: point for point in points(reference, load(subject.typed, feed))}
    groups = _groups(matched.values(), reference, budget)
    tallies = {tensor: Tally() for tensor in matched}
    rescaling = Rescaling()
    for number, group in enumerate(groups):
        with tempfile.TemporaryDirectory(dir=workspace) as folder:
            views = open_views(subject, group, matched, Path(folder))
            # The factors of equalized tensors must be known before their drift can be measured.
            if views.unscaled:
                for index in indices:
                    views.measure(dataset.load(index), rescaling)
            for done, index in enumerate(indices, start=1):
                views.add(dataset.load(index), rescaling, tallies)
                emit(Progress("layers", number * len(indices) + done, len(groups) * len(indices)))
    rows = _rows(matched, tallies, {decision.node: decision.precision for decision in subject.decisions})
    divergent, reason = jump.find(rows, {point.node: point.between for point in matched.values()})
    return Layers(layers=rows, jump=divergent, reason=reason, samples=len(indices), data=dataset.source)


def worst(layers: Layers, count: int) -> tuple[LayerDrift, ...]:
    """Return the `count` nodes whose results have the lowest SQNR, lowest first."""
    return tuple(sorted(layers.layers, key=lambda layer: layer.sqnr)[:count])


def _groups(matched: Iterable[Point], reference: ir.Model, budget: int) -> list[tuple[Point, ...]]:
    """Divide the points, in graph order, into groups whose FP32 tensors take at most `budget` bytes each.

    A dimension that is not known counts as 1. A tensor larger than the budget is a group of its own.
    """
    values = [value for node in reference.graph for value in node.outputs]
    elements = {value.name: math.prod(dim or 1 for dim in dims(value) or ()) for value in values}
    groups: list[list[Point]] = []
    left = 0
    for point in matched:
        size = 4 * elements[point.reference]
        if size > left or not groups:
            groups.append([])
            left = budget
        groups[-1].append(point)
        left -= size
    return [tuple(group) for group in groups]


def _rows(
    matched: Mapping[str, Point], tallies: Mapping[str, Tally], precisions: Mapping[str, str]
) -> tuple[LayerDrift, ...]:
    """Return the drift of each node. If a node has several results, the one with the largest error is used."""
    sqnr = {tensor: _sqnr(tally.signal, tally.drift) for tensor, tally in tallies.items()}
    rows: dict[str, LayerDrift] = {}
    for tensor, point in matched.items():
        tally = tallies[tensor]
        # Always 0 in FP32: a ratio needs a signal.
        if not tally.signal and math.isfinite(tally.drift + tally.added):
            continue
        inputs = [sqnr[before] for before in point.before if tallies[before].signal]
        row = LayerDrift(
            node=point.node,
            op=point.op,
            tensor=point.reference,
            precision=precisions.get(point.node, point.precision),
            sqnr=sqnr[tensor],
            sqnr_in=min(inputs, default=math.inf),
            added=tally.added / tally.signal if tally.signal else math.inf,
        )
        if point.node not in rows or row.added > rows[point.node].added:
            rows[point.node] = row
    return tuple(rows.values())


def _sqnr(signal: float, error: float) -> float:
    """Return the ratio of two energies in dB: infinite without an error, minus infinity for an infinite error."""
    if not error:
        return math.inf
    return 10 * math.log10(signal / error) if signal and math.isfinite(error) else -math.inf
