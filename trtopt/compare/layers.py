"""Where drift comes from: FP32 and the typed graph side by side, tensor by tensor, over a few samples.

The typed graph runs twice. Once as it is: how far each of its tensors is from FP32's is the drift up to there. Once
with FP32's tensors given to every node in place of those that the nodes before it made: what is wrong at its output is
then the noise of that node alone: of quantizing or rounding what it reads to its type, of its weights, and of its own
rounding. Drift itself cannot tell whose noise it is, as a layer may amplify or hide what came from those before it.

Touches: writes copies of both graphs into the folder that it is given, and deletes them; onnxruntime runs them.
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
from trtopt.precision.graph import dims
from trtopt.precision.half import INFINITY_STAND_IN
from trtopt.types import Decision, LayerDrift, Layers, OnnxModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtopt.engine.onnxruntime import OrtRunner

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

SAMPLES = 8
"""Samples looked at, spread over the dataset: a broken layer is broken for every sample."""

BUDGET = 256 << 20
"""Bytes of one sample's FP32 tensors looked at in one go, for which about five times as much memory is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An FP32 graph, a typed graph, what is known of the precision of its nodes, and the device as for `open_runner`.

    `reference` is best the graph that `typed` was made from; any with tensors of the same names and meaning will do.
    """

    reference: OnnxModel
    typed: OnnxModel
    decisions: tuple[Decision, ...] = ()
    device: str = "cpu"


def look(subject: Subject, dataset: Dataset, *, emit: Emit, workspace: Path, budget: int = BUDGET) -> Layers:
    """Return the drift at every node of the typed graph that has a counterpart in the FP32 graph, in graph order.

    `workspace` is a folder for temporary copies of the graphs; a network whose tensors exceed `budget` takes several
    goes, with the same result.

    A tensor that FP32 gives as nothing but 0 has no SQNR and is left out. So are numbers that FP32 itself gives as NaN,
    infinite, or -1e9 and beyond: a mask's stand-ins for infinity are smaller in 16 bits, and mean the same.

    Raises:
        DataError: there are no samples, or one cannot be loaded or run.
        ModelError: onnxruntime cannot load a graph, or the shape of a tensor depends on the values of others.
    """
    if not len(dataset):
        raise DataError(f"{dataset.source} holds no samples", fix="Give a few samples like those of production")
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int)).tolist()
    feed = dataset.load(indices[0])
    reference = _load(subject.reference, feed)
    found = {point.tensor: point for point in points(reference, _load(subject.typed, feed))}
    groups = _groups(found.values(), reference, budget)
    tallies = {tensor: _Tally() for tensor in found}
    rescaling = Rescaling()
    for number, group in enumerate(groups):
        with tempfile.TemporaryDirectory(dir=workspace) as folder:
            views = _views(subject, group, found, Path(folder))
            for index in indices if views.unscaled else ():
                views.measure(dataset.load(index), rescaling)
            for done, index in enumerate(indices, start=1):
                views.add(dataset.load(index), rescaling, tallies)
                emit(Progress("layers", number * len(indices) + done, len(groups) * len(indices)))
    rows = _rows(found, tallies, {decision.node: decision.precision for decision in subject.decisions})
    where, reason = jump.find(rows, {p.node: p.between for p in found.values()})
    return Layers(layers=rows, jump=where, reason=reason, samples=len(indices), data=dataset.source)


def worst(layers: Layers, count: int) -> tuple[LayerDrift, ...]:
    """Return the `count` nodes whose results are farthest from FP32's, the farthest first."""
    return tuple(sorted(layers.layers, key=lambda layer: layer.sqnr)[:count])


@dataclass(slots=True)
class _Tally:
    """Energies of one tensor over the samples so far: of FP32's numbers, of the drift, and of the node's own noise.

    An energy is infinite once a number is NaN or Inf where FP32's is finite.
    """

    signal: float = 0.0
    drift: float = 0.0
    added: float = 0.0

    def add(self, reference: Array, run: Array, alone: Array) -> None:
        """Take one sample: FP32's tensor, that of the typed graph as it runs, and of the node fed with FP32's."""
        x, y, z = (np.asarray(array, np.float64).ravel() for array in (reference, run, alone))
        counts = np.abs(x) < INFINITY_STAND_IN  # not so where it is NaN
        if not counts.all():
            x, y, z = x[counts], y[counts], z[counts]
        with np.errstate(invalid="ignore"):
            self.signal += _energy(x)
            self.drift += _energy(y - x)
            self.added += _energy(z - x)


def _energy(x: Floats) -> float:
    energy = float(np.einsum("i,i->", x, x))  # np.dot's threads would wait for those of onnxruntime
    return energy if math.isfinite(energy) else math.inf


@dataclass(frozen=True, slots=True)
class _View:
    """A copy of a graph that shows tensors (`shown`: by which output) and is given some (`given`: by which input)."""

    runner: OrtRunner
    shown: Mapping[str, str]
    given: Mapping[str, str]

    def run(self, feed: Feed, values: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors that it shows, for one sample and the values of those that it is given."""
        results = self.runner.run({**feed, **{name: values[tensor] for tensor, name in self.given.items()}})
        return {tensor: results[name] for tensor, name in self.shown.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Views:
    """Views for a group of points.

    `points` are theirs and those that they read. `unscaled` shows the group's equalized tensors while FP32's values are
    given for all that have the same scale in both graphs; None when there are no equalized ones.
    """

    group: tuple[Point, ...]
    points: tuple[Point, ...]
    reference: _View
    typed: _View
    alone: _View
    unscaled: _View | None

    def measure(self, feed: Feed, rescaling: Rescaling) -> None:
        """Take one sample's evidence of how equalized tensors of the group are scaled."""
        assert self.unscaled is not None
        shown = self.reference.run(feed, {})
        given = {point.tensor: shown[point.reference] for point in self.points if point.link is None}
        found = self.unscaled.run(feed, given)
        for point in self.group:
            if point.link is not None:
                rescaling.add(point, shown[point.reference], found[point.end])

    def add(self, feed: Feed, rescaling: Rescaling, tallies: Mapping[str, _Tally]) -> None:
        """Count one sample."""
        shown = self.reference.run(feed, {})
        wanted = {point.tensor: rescaling.apply(point, shown[point.reference]) for point in self.points}
        drifted = self.typed.run(feed, {})
        try:
            alone = self.alone.run(feed, wanted)
        except DataError as error:
            raise ModelError(
                "the layers cannot be looked at one by one", why=error.why, fix="Compare without --layers"
            ) from error
        for point in self.group:
            found = (drifted[point.end], alone[point.end])
            if any(array.shape != wanted[point.tensor].shape for array in found):
                raise ModelError(
                    f"tensor {point.reference} has another shape in the candidate",
                    why=f"{list(found[0].shape)} instead of {list(wanted[point.tensor].shape)} for the same sample",
                    fix="Compare without --layers",
                )
            tallies[point.tensor].add(wanted[point.tensor], *found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where copies of graphs are written, and where they run."""

    folder: Path
    device: str

    def view(self, model: OnnxModel, tensors: Iterable[str], given: Iterable[Point] = ()) -> _View:
        """Open a copy of the graph that shows these tensors and is given those."""
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.prepare import save

        graph = _load(model)
        inputs = give(graph, tuple(given))
        outputs = show(graph, tuple(tensors))
        path = self.folder / f"{sum(1 for _ in self.folder.iterdir())}.onnx"
        save(graph, path)
        return _View(open_runner(path, device=self.device), outputs, inputs)


def _views(subject: Subject, group: tuple[Point, ...], found: Mapping[str, Point], folder: Path) -> _Views:
    place = _Place(folder=folder, device=subject.device)
    scaled = [point for point in group if point.link is not None]
    read = [found[tensor] for point in group for tensor in (point.tensor, *point.before)]
    known = tuple(dict.fromkeys([*read, *_same_scale(scaled, found)]))
    same = [point for point in known if point.link is None]
    ends = [point.end for point in group]
    return _Views(
        group=group,
        points=known,
        reference=place.view(subject.reference, [point.reference for point in known]),
        typed=place.view(subject.typed, ends),
        alone=place.view(subject.typed, ends, known),
        unscaled=place.view(subject.typed, [point.end for point in scaled], same) if scaled else None,
    )


def _same_scale(scaled: Iterable[Point], found: Mapping[str, Point]) -> list[Point]:
    """The nearest points before these that have the same scale in both graphs."""
    todo = [found[tensor] for point in scaled for tensor in point.before]
    nearest: dict[Point, None] = {}
    while todo:
        point = todo.pop()
        if point.link is None:
            nearest[point] = None
        else:
            todo += [found[tensor] for tensor in point.before]
    return list(nearest)


def _load(model: OnnxModel, feed: Feed | None = None) -> ir.Model:
    """The graph with types and shapes inferred: those of one sample, when it is given."""
    import onnx_ir as ir

    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import infer_shapes

    graph = load_ir(model.path)
    for value in graph.graph.inputs:
        if feed and value.name in feed:
            value.shape = ir.Shape(feed[value.name].shape)
    infer_shapes(graph)
    return graph


def _groups(found: Iterable[Point], reference: ir.Model, budget: int) -> list[tuple[Point, ...]]:
    """Neighbours in graph order whose FP32 tensors need no more than `budget` bytes, as far as shapes are known."""
    sizes = {
        value.name: math.prod(d or 1 for d in dims(value) or ()) for node in reference.graph for value in node.outputs
    }
    groups: list[list[Point]] = []
    left = 0
    for point in found:
        need = 4 * sizes[point.reference]
        if need > left or not groups:
            groups.append([])
            left = budget
        groups[-1].append(point)
        left -= need
    return [tuple(group) for group in groups]


def _rows(
    found: Mapping[str, Point], tallies: Mapping[str, _Tally], precisions: Mapping[str, str]
) -> tuple[LayerDrift, ...]:
    """A row for each node: of several results, that with the most noise."""
    ratios = {tensor: _ratio(tally.signal, tally.drift) for tensor, tally in tallies.items()}
    rows: dict[str, LayerDrift] = {}
    for tensor, point in found.items():
        tally = tallies[tensor]
        if not tally.signal and math.isfinite(tally.drift + tally.added):
            continue
        row = LayerDrift(
            node=point.node,
            op=point.op,
            tensor=point.reference,
            precision=precisions.get(point.node, point.precision),
            sqnr=ratios[tensor],
            sqnr_in=min((ratios[before] for before in point.before if tallies[before].signal), default=math.inf),
            added=tally.added / tally.signal if tally.signal else math.inf,
        )
        if point.node not in rows or row.added > rows[point.node].added:
            rows[point.node] = row
    return tuple(rows.values())


def _ratio(signal: float, noise: float) -> float:
    """Signal over noise in dB: infinite where there is no noise, minus infinite where it is infinite."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf
