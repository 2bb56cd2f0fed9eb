"""Trials of mixed precision: the network with some nodes kept in higher precision, compared with FP32.

What is not quantized is computed in FP32 here, also where the result will have 16 bits, unless a trial asks for that.

Touches: temporary files in the run directory; reads the samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from trtopt.calibrate.ranges import few
from trtopt.data.dataset import Array, Dataset
from trtopt.errors import CalibrationError
from trtopt.parallel import in_order
from trtopt.plan import MeasurePlan
from trtopt.run import Run
from trtopt.stages.precision import request
from trtopt.stages.target import Target
from trtopt.stages.trial import Energies, combined, energies, scratch
from trtopt.types import CalibrationTable, Comparison, Keep, Observation, OnnxModel

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from trtopt.compare.gates import Gate
    from trtopt.engine.onnxruntime import OrtRunner
    from trtopt.precision.passes.switches import Switched
    from trtopt.tune.costs import Speed
    from trtopt.tune.search import Costs, Group

    Switches = NDArray[np.bool_]

MOST_BYTES = 1 << 30
"""Bytes of FP32's outputs that are remembered between trials. Other samples run again."""

MEASURED = 0.2
"""Share of the groups whose error is measured, and not only estimated."""

FEW = 2
"""Samples that an estimate runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network that is about to be quantized.

    Attributes:
        baseline: the FP32 model to compare with.
        model: the prepared model, possibly equalized.
        target: the requested precision, with the nodes that are kept in any case.
        table: the scales.
        seen: statistics of the activations.
    """

    baseline: OnnxModel
    model: OnnxModel
    target: Target
    table: CalibrationTable
    seen: Observation


class Remembered:
    """A runner that remembers its outputs by the content of the feed."""

    def __init__(self, runner: OrtRunner) -> None:
        self.where = runner.where
        self.callers = runner.callers
        self._runner = runner
        self._known: dict[bytes, Mapping[str, Array]] = {}
        self._bytes = 0

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs for one feed, by name."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in feed.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        key = digest.digest()
        outputs = self._known.get(key)
        if outputs is None:
            outputs = self._runner.run(feed)
            self._bytes += sum(array.nbytes for array in outputs.values())
            if self._bytes <= MOST_BYTES:
                self._known[key] = outputs
        return outputs


def error_of(measure: Callable[[], Iterable[Energies]]) -> float:
    """Return the relative error of the outputs; infinity if one is NaN, or infinite where FP32's is not."""
    try:
        return combined(measure())
    except CalibrationError:
        return math.inf


def worst_of(errors: Mapping[str, float], total: int) -> list[str]:
    """Return the groups whose error is worth measuring: those with the largest estimates, a fifth of `total` groups."""
    return sorted(errors, key=lambda name: -errors[name])[: max(3, round(MEASURED * total))]


class Trials:
    """The trials of a network.

    `baseline` runs FP32. `groups` are the groups of its quantized nodes, each with what quantizing them saves, and
    `shares` the share of each in all multiplications. `total` is the cost of the network without any of them quantized,
    and `overhead` what quantizing some of them costs elsewhere, such as reformats that belong to no group.
    """

    def __init__(self, run: Run, subject: Subject, speed: Speed | None = None) -> None:
        from trtopt.calibrate.observe import callers
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.file import load_ir
        from trtopt.precision.passes.placement import place
        from trtopt.tune.costs import both, halved, macs
        from trtopt.tune.groups import groups

        self._run = run
        self._precision = subject.target.precision
        self._rest = subject.target.rest
        self.graph = load_ir(subject.model.path)
        self.request = replace(request(self.graph, subject.target, subject.table, subject.seen), rest="fp32")
        sizes, speed = subject.seen.sizes, speed or halved(both)
        nodes = {node.name or "": node for node in self.graph.graph}
        placement = place(self.graph, self.request.keep)
        self.groups: tuple[Group, ...] = groups(placement, lambda node: speed.saving(node, sizes))
        self.total = max(sum(speed.cost(node, sizes) for node in nodes.values()) + speed.rest, 1e-30)
        saved = sum(group.saving for group in self.groups)
        self.overhead = 0.0 if speed.quantized is None else speed.quantized - (self.total - saved)
        every = max(sum(macs(node, sizes) for node in nodes.values()), 1e-30)
        self.shares = {
            group.name: sum(macs(nodes[name], sizes) for name in group.nodes) / every for group in self.groups
        }
        self.baseline = Remembered(open_runner(subject.baseline.path, device=run.device, callers=callers()))
        self._last: tuple[tuple[frozenset[str], bool], Remembered] | None = None

    def quantized(self, kept: Collection[str], rest: str = "fp32") -> OrtRunner:
        """Load the network in which these nodes are kept, and the others quantized as they are placed then."""
        from trtopt.precision import precision

        graph = self.graph.clone()
        keep = {**self.request.keep, **{name: Keep(pattern=name) for name in kept}}
        precision(self._precision).apply(graph, replace(self.request, keep=keep, rest=rest))
        return self._loaded(graph)

    def _loaded(self, graph: ir.Model) -> OrtRunner:
        from trtopt.calibrate.observe import callers
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.prepare import BETWEEN_STAGES, save

        with scratch(self._run, "trial.onnx") as path:
            save(graph, path, inline=BETWEEN_STAGES)
            return open_runner(path, device=self._run.device, callers=callers())

    def judged(
        self,
        dataset: Dataset,
        kept: Collection[str],
        measure: MeasurePlan,
        gates: Sequence[Gate] = (),
        *,
        as_built: bool = False,
    ) -> Comparison:
        """Return the judged drift of the network in which these nodes are kept: in 16 bits, if it is `as_built`.

        Batches that the same network has run in the call before are not run again.
        """
        choice = (frozenset(kept), as_built)
        if self._last is None or self._last[0] != choice:
            self._last = None  # closed before the next one is loaded
            self._last = choice, Remembered(self.quantized(kept, self._rest if as_built else "fp32"))
        return self._compared(self._last[1], dataset, measure, gates)

    def ceiling(self, dataset: Dataset, measure: MeasurePlan, gates: Sequence[Gate] = ()) -> Comparison:
        """Return the judged drift of FP32 from itself: what a perfect network can show on these samples."""
        return self._compared(self.baseline, dataset, measure, gates)

    def _compared(
        self, candidate: Remembered, dataset: Dataset, measure: MeasurePlan, gates: Sequence[Gate]
    ) -> Comparison:
        from trtopt.compare.gate import judged
        from trtopt.compare.pair import Pair
        from trtopt.events import silent
        from trtopt.stages.compare import measured

        pair = Pair(baseline=self.baseline, candidate=candidate, names=("", ""))
        return judged(measured(pair, dataset, measure, silent), gates)

    def energies(self, dataset: Dataset, kept: Collection[str]) -> list[Energies]:
        """Return the error energies of every sample for the network in which these nodes are kept."""
        return self._energies(self.quantized(kept), dataset)

    def switched(self, dataset: Dataset) -> tuple[Switched, Callable[[Switches], list[Energies]]]:
        """Load the network with a switch for every quantization.

        Returns its switches, and a function that returns the error energies of every sample for a choice of them.
        """
        from trtopt.precision import precision
        from trtopt.precision.passes.switches import SWITCHES, switched

        board = switched(self.graph, self.request, precision(self._precision).FORMAT)
        runner = self._loaded(board.model)
        return board, lambda choice: self._energies(runner, dataset, {SWITCHES: choice})

    def _energies(self, runner: OrtRunner, dataset: Dataset, more: Mapping[str, Array] | None = None) -> list[Energies]:
        feeds = list(map(dataset.load, range(len(dataset))))
        found = in_order(lambda feed: runner.run({**feed, **(more or {})}), feeds, runner.callers)
        return [energies(*pair) for pair in zip(map(self.baseline.run, feeds), found, strict=True)]

    def alone(self, dataset: Dataset, groups: Iterable[Group]) -> dict[str, float]:
        """Return by group the relative error of the outputs with only this group quantized; infinity if one is NaN.

        An operator that is placed beside others only, such as a residual Add, is switched on without these.
        """
        errors, beside = {}, []
        for group in groups:
            kept = self.nodes(self.groups) - {*group.nodes}
            if self._is_placed(group, kept):
                errors[group.name] = error_of(partial(self.energies, dataset, kept))
            else:
                beside.append(group)
        if beside:
            board, run = self.switched(dataset)
            errors |= {group.name: error_of(partial(run, board.only(group.nodes))) for group in beside}
        return errors

    def _is_placed(self, group: Group, kept: Collection[str]) -> bool:
        from trtopt.precision.passes.placement import place

        keep = {**self.request.keep, **{name: Keep(pattern=name) for name in kept}}
        return {*group.nodes} <= {site.node.name for site in place(self.graph, keep).sites}

    def estimated(self, dataset: Dataset) -> dict[str, float]:
        """Return an estimate of `alone` for every group, from a few of the samples."""
        return self.alone(few(dataset, FEW), self.groups)

    def worst(self, errors: Mapping[str, float]) -> list[Group]:
        """Return those of the groups in `errors` that can be among the worst of all groups (`worst_of`)."""
        groups = {group.name: group for group in self.groups}
        return [groups[name] for name in worst_of(errors, len(groups))]

    @staticmethod
    def nodes(groups: Iterable[Group]) -> set[str]:
        """Return the names of the nodes of groups."""
        return {node for group in groups for node in group.nodes}

    def ranked(self, dataset: Dataset, costs: Costs) -> list[Group]:
        """Return the groups in the order in which to keep them (`search.ranked`).

        The errors of all groups are estimated. Those of the worst are then measured.
        """
        from trtopt.tune.search import ranked

        errors = self.estimated(dataset)
        errors |= self.alone(dataset, self.worst(errors))
        return ranked(self.groups, errors, costs)
