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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.compare import jump
from trtopt.compare.rescale import Rescaling
from trtopt.compare.taps import Point, give, points, show
from trtopt.data.dataset import Dataset, Feed
from trtopt.errors import DataError, ModelError
from trtopt.events import Emit, Progress
from trtopt.graph.query import dims
from trtopt.precision.passes.masks import MASK
from trtopt.types import Decision, LayerDrift, Layers, OnnxModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtopt.engine.onnxruntime import OrtRunner

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

SAMPLES = 8
"""Number of samples, spread over the dataset. A few are enough, because a broken layer is broken for every sample."""

BUDGET = 256 << 20
"""Largest size, in bytes, of one sample's FP32 tensors in one pass. A pass needs about five times as much memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An FP32 graph, a typed graph, the known precisions of its nodes, and the device, as for `open_runner`.

    `reference` is preferably the graph that `typed` was made from. Another graph must use the same tensor names.
    """

    reference: OnnxModel
    typed: OnnxModel
    decisions: tuple[Decision, ...] = ()
    device: str = "cpu"


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
    reference = _load(subject.reference, feed)
    matched = {point.tensor: point for point in points(reference, _load(subject.typed, feed))}
    groups = _groups(matched.values(), reference, budget)
    tallies = {tensor: _Tally() for tensor in matched}
    rescaling = Rescaling()
    for number, group in enumerate(groups):
        with tempfile.TemporaryDirectory(dir=workspace) as folder:
            views = _views(subject, group, matched, Path(folder))
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


@dataclass(slots=True)
class _Tally:
    """Energies of one tensor over the samples so far: of FP32's values, of the drift, and of the node's own error.

    An error energy is infinite once a value is NaN or infinite where FP32's is finite.
    """

    signal: float = 0.0
    drift: float = 0.0
    added: float = 0.0

    def add(self, reference: Array, run: Array, alone: Array) -> None:
        """Add one sample: the values in FP32, in the typed graph, and at the node if it gets FP32's inputs."""
        x, y, z = (np.asarray(array, np.float64).ravel() for array in (reference, run, alone))
        finite = np.abs(x) < MASK  # False for NaN as well
        if not finite.all():
            x, y, z = x[finite], y[finite], z[finite]
        with np.errstate(invalid="ignore"):
            self.signal += _energy(x)
            self.drift += _energy(y - x)
            self.added += _energy(z - x)


def _energy(x: Floats) -> float:
    """Return the sum of squares, or infinity if it is not finite."""
    # Not np.dot: its threads would compete with those of onnxruntime.
    energy = float(np.einsum("i,i->", x, x))
    return energy if math.isfinite(energy) else math.inf


@dataclass(frozen=True, slots=True)
class _View:
    """A copy of a graph that returns the tensors `shown`, by output name, and takes those `given`, by input name."""

    runner: OrtRunner
    shown: Mapping[str, str]
    given: Mapping[str, str]

    def run(self, feed: Feed, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the `shown` tensors for one sample, given the values of the `given` tensors."""
        inputs = {name: values[tensor] for tensor, name in self.given.items()}
        results = self.runner.run({**feed, **inputs})
        return {tensor: results[name] for tensor, name in self.shown.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Views:
    """Views for a group of points: the FP32 graph, the typed graph as it is, and the typed graph with FP32's values.

    `points` are the group and the points that it is computed from. `alone` takes FP32's values for all of them.
    `unscaled` returns the equalized tensors of the group, and takes FP32's values for the points that have the same
    scale in both graphs; it is None if the group has no equalized tensors.
    """

    group: tuple[Point, ...]
    points: tuple[Point, ...]
    reference: _View
    typed: _View
    alone: _View
    unscaled: _View | None

    def measure(self, feed: Feed, rescaling: Rescaling) -> None:
        """Add one sample to the estimated factors of the group's equalized tensors."""
        assert self.unscaled is not None
        fp32 = self.reference.run(feed, {})
        given = {point.tensor: fp32[point.reference] for point in self.points if point.link is None}
        equalized = self.unscaled.run(feed, given)
        for point in self.group:
            if point.link is not None:
                rescaling.add(point, fp32[point.reference], equalized[point.end])

    def add(self, feed: Feed, rescaling: Rescaling, tallies: Mapping[str, _Tally]) -> None:
        """Add one sample to the tallies of the group. Raise ModelError if the shapes of a tensor differ."""
        fp32 = self.reference.run(feed, {})
        expected = {point.tensor: rescaling.apply(point, fp32[point.reference]) for point in self.points}
        run = self.typed.run(feed, {})
        try:
            alone = self.alone.run(feed, expected)
        except DataError as error:
            raise ModelError(
                "the layers cannot be compared one by one", why=error.why, fix="Compare without --layers"
            ) from error
        for point in self.group:
            reference = expected[point.tensor]
            results = (run[point.end], alone[point.end])
            if any(array.shape != reference.shape for array in results):
                raise ModelError(
                    f"tensor {point.reference} has another shape in the candidate",
                    why=f"{list(results[0].shape)} instead of {list(reference.shape)} for the same sample",
                    fix="Compare without --layers",
                )
            tallies[point.tensor].add(reference, *results)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workspace:
    """The folder for copies of graphs, and the device where they run."""

    folder: Path
    device: str

    def view(self, model: OnnxModel, tensors: Iterable[str], given: Iterable[Point] = ()) -> _View:
        """Open a copy of the graph that returns `tensors` and takes the values of `given`."""
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.prepare import save

        graph = _load(model)
        inputs = give(graph, tuple(given))
        outputs = show(graph, tuple(tensors))
        # A new name for each copy.
        path = self.folder / f"{sum(1 for _ in self.folder.iterdir())}.onnx"
        save(graph, path)
        return _View(open_runner(path, device=self.device), outputs, inputs)


def _views(subject: Subject, group: tuple[Point, ...], matched: Mapping[str, Point], folder: Path) -> _Views:
    """Open the views for a group of points; `matched` holds all points by `Point.tensor`."""
    workspace = _Workspace(folder=folder, device=subject.device)
    equalized = [point for point in group if point.link is not None]
    with_inputs = [matched[tensor] for point in group for tensor in (point.tensor, *point.before)]
    needed = tuple(dict.fromkeys([*with_inputs, *_same_scale(equalized, matched)]))
    same_scale = [point for point in needed if point.link is None]
    ends = [point.end for point in group]
    unscaled = None
    if equalized:
        unscaled = workspace.view(subject.typed, [point.end for point in equalized], same_scale)
    return _Views(
        group=group,
        points=needed,
        reference=workspace.view(subject.reference, [point.reference for point in needed]),
        typed=workspace.view(subject.typed, ends),
        alone=workspace.view(subject.typed, ends, needed),
        unscaled=unscaled,
    )


def _same_scale(equalized: Iterable[Point], matched: Mapping[str, Point]) -> list[Point]:
    """Return the nearest points before the equalized ones that have the same scale in both graphs."""
    pending = [matched[tensor] for point in equalized for tensor in point.before]
    nearest: dict[Point, None] = {}
    while pending:
        point = pending.pop()
        if point.link is None:
            nearest[point] = None
        else:
            pending += [matched[tensor] for tensor in point.before]
    return list(nearest)


def _load(model: OnnxModel, feed: Feed | None = None) -> ir.Model:
    """Return the graph with types and shapes inferred, for the shapes of `feed` if it is given."""
    import onnx_ir as ir

    from trtopt.graph.file import load_ir
    from trtopt.graph.prepare import infer_shapes

    graph = load_ir(model.path)
    for value in graph.graph.inputs:
        if feed and value.name in feed:
            value.shape = ir.Shape(feed[value.name].shape)
    infer_shapes(graph)
    return graph


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
    matched: Mapping[str, Point], tallies: Mapping[str, _Tally], precisions: Mapping[str, str]
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
