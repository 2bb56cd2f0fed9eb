"""Trials of mixed precision: the network with some nodes kept in higher precision, compared with FP32.

What is not quantized is computed in FP32 here, also where the result will have 16 bits.

Touches: temporary files in the run directory; reads the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trtopt.data.dataset import Array, Dataset
from trtopt.parallel import in_order
from trtopt.plan import MeasurePlan
from trtopt.run import Run
from trtopt.stages.precision import request
from trtopt.stages.target import Target
from trtopt.stages.trial import relative_error, scratch
from trtopt.types import CalibrationTable, Comparison, Keep, Observation, OnnxModel

if TYPE_CHECKING:
    from trtopt.compare.gates import Gate
    from trtopt.engine.onnxruntime import OrtRunner
    from trtopt.tune.search import Group

MOST_BYTES = 1 << 30
"""Bytes of FP32's outputs that are remembered between trials. Other samples run again."""

_MEASURED = 0.2
"""Share of the groups whose error is measured, and not only estimated."""


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


class Trials:
    """The trials of a network.

    `groups` are the groups of its quantized nodes.
    """

    def __init__(self, run: Run, subject: Subject) -> None:
        from trtopt.calibrate.observe import callers
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.file import load_ir
        from trtopt.precision.passes.placement import place
        from trtopt.tune.groups import groups

        self._run = run
        self._precision = subject.target.precision
        self._graph = load_ir(subject.model.path)
        self._request = replace(request(self._graph, subject.target, subject.table, subject.seen), rest="fp32")
        self.groups: tuple[Group, ...] = groups(place(self._graph, self._request.keep), subject.seen.sizes)
        self._baseline = Remembered(open_runner(subject.baseline.path, device=run.device, callers=callers()))

    @contextmanager
    def _opened(self, kept: Collection[str]) -> Iterator[OrtRunner]:
        """Open the network in which these nodes are kept, and the others quantized as they are placed then."""
        from trtopt.calibrate.observe import callers
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.prepare import BETWEEN_STAGES, save
        from trtopt.precision import precision

        graph = self._graph.clone()
        keep = {**self._request.keep, **{name: Keep(pattern=name) for name in kept}}
        precision(self._precision).apply(graph, replace(self._request, keep=keep))
        with scratch(self._run, "trial.onnx") as path:
            save(graph, path, inline=BETWEEN_STAGES)
            yield open_runner(path, device=self._run.device, callers=callers())

    def judged(
        self, dataset: Dataset, kept: Collection[str], measure: MeasurePlan, gates: Sequence[Gate] = ()
    ) -> Comparison:
        """Return the judged drift of the network in which these nodes are kept."""
        from trtopt.compare.gate import judged
        from trtopt.compare.run import Pair
        from trtopt.events import silent
        from trtopt.stages.compare import measured

        with self._opened(kept) as runner:
            pair = Pair(baseline=self._baseline, candidate=runner, names=("", ""))
            return judged(measured(pair, dataset, measure, silent), gates)

    def error(self, dataset: Dataset, kept: Collection[str]) -> float:
        """Return the relative error of the outputs of the network in which these nodes are kept (`relative_error`)."""
        feeds = list(map(dataset.load, range(len(dataset))))
        with self._opened(kept) as runner:
            found = in_order(runner.run, feeds, runner.callers)
            return relative_error(zip(map(self._baseline.run, feeds), found, strict=True))

    def ranked(self, dataset: Dataset) -> list[Group]:
        """Return the groups in the order in which to keep them (`search.ranked`).

        The errors of all groups are estimated in one pass (`trtopt.tune.estimate`). Those of the worst are then
        measured, with only this group quantized.
        """
        from trtopt.tune.search import ranked

        errors = self.estimated(dataset)
        every = {node for group in self.groups for node in group.nodes}
        worst = sorted(self.groups, key=lambda group: -errors[group.name])[
            : max(3, round(_MEASURED * len(self.groups)))
        ]
        for group in worst:
            errors[group.name] = self.error(dataset, every.difference(group.nodes))
        return ranked(self.groups, errors)

    def estimated(self, dataset: Dataset) -> dict[str, float]:
        """Return by group an estimate of the relative error of the outputs that it adds."""
        from trtopt.calibrate.observe import callers
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.prepare import BETWEEN_STAGES, save
        from trtopt.precision import precision
        from trtopt.precision.passes.twins import ERROR, POWER, twinned
        from trtopt.tune.estimate import gains

        twins = twinned(self._graph, self._request, precision(self._precision).FORMAT)
        errors, powers = np.zeros(len(twins.nodes)), np.zeros(len(twins.merged))
        with scratch(self._run, "twins.onnx") as path:
            save(twins.model, path, inline=BETWEEN_STAGES)
            runner = open_runner(path, device=self._run.device, callers=callers())
            feeds: Sequence[Mapping[str, Array]] = list(map(dataset.load, range(len(dataset))))
            for found in in_order(runner.run, feeds, runner.callers):
                errors += found[ERROR].astype(np.float64)
                powers += found[POWER].astype(np.float64) if twins.merged else 0.0
        added = dict(zip(twins.nodes, errors / len(dataset), strict=True))
        gain = gains(self._graph, dict(zip(twins.merged, powers.tolist(), strict=True)))
        result = {node.name or "": gain.get(node.outputs[0].name or "", 0.0) for node in self._graph.graph}
        return {group.name: sum(added[node] * result[node] for node in group.nodes) for group in self.groups}
