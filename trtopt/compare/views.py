"""Views of graphs: copies that return chosen tensors, and take chosen tensors as inputs, run sample by sample.

Touches: writes copies of graphs into the folder that is passed in; onnxruntime runs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.compare.cuts import give, show
from trtopt.compare.rescale import Rescaling
from trtopt.compare.taps import Point
from trtopt.data.dataset import Feed
from trtopt.errors import DataError, ModelError
from trtopt.precision.passes.masks import MASK
from trtopt.types import Decision, OnnxModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtopt.engine.onnxruntime import OrtRunner

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An FP32 graph, a typed graph, the known precisions of its nodes, and the device, as for `open_runner`.

    `reference` is preferably the graph that `typed` was made from. Another graph must use the same tensor names.
    """

    reference: OnnxModel
    typed: OnnxModel
    decisions: tuple[Decision, ...] = ()
    device: str = "cpu"


@dataclass(slots=True)
class Tally:
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
class View:
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
class Views:
    """Views for a group of points: the FP32 graph, the typed graph as it is, and the typed graph with FP32's values.

    `points` are the group and the points that it is computed from. `alone` takes FP32's values for all of them.
    `unscaled` returns the equalized tensors of the group, and takes FP32's values for the points that have the same
    scale in both graphs; it is None if the group has no equalized tensors.
    """

    group: tuple[Point, ...]
    points: tuple[Point, ...]
    reference: View
    typed: View
    alone: View
    unscaled: View | None

    def measure(self, feed: Feed, rescaling: Rescaling) -> None:
        """Add one sample to the estimated factors of the group's equalized tensors."""
        assert self.unscaled is not None
        fp32 = self.reference.run(feed, {})
        given = {point.tensor: fp32[point.reference] for point in self.points if point.link is None}
        equalized = self.unscaled.run(feed, given)
        for point in self.group:
            if point.link is not None:
                rescaling.add(point, fp32[point.reference], equalized[point.end])

    def add(self, feed: Feed, rescaling: Rescaling, tallies: Mapping[str, Tally]) -> None:
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
            different = next((array.shape for array in results if array.shape != reference.shape), None)
            if different is not None:
                raise ModelError(
                    f"tensor {point.reference} has another shape in the candidate",
                    why=f"{list(different)} instead of {list(reference.shape)} for the same sample",
                    fix="Compare without --layers",
                )
            tallies[point.tensor].add(reference, *results)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workspace:
    """The folder for copies of graphs, and the device where they run."""

    folder: Path
    device: str

    def view(self, model: OnnxModel, tensors: Iterable[str], given: Iterable[Point] = ()) -> View:
        """Open a copy of the graph that returns `tensors` and takes the values of `given`."""
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.prepare import save

        graph = load(model)
        inputs = give(graph, tuple(given))
        outputs = show(graph, tuple(tensors))
        # A new name for each copy.
        path = self.folder / f"{sum(1 for _ in self.folder.iterdir())}.onnx"
        save(graph, path)
        return View(open_runner(path, device=self.device), outputs, inputs)


def open_views(subject: Subject, group: tuple[Point, ...], matched: Mapping[str, Point], folder: Path) -> Views:
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
    return Views(
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


def load(model: OnnxModel, feed: Feed | None = None) -> ir.Model:
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
