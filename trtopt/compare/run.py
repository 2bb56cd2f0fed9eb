"""Run baseline and candidate on the same samples, and measure the difference.

Touches: nothing itself; the runners run models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trtopt.compare.metrics import Array, OutputMetrics
from trtopt.data.dataset import Dataset, batches
from trtopt.errors import DataError, ModelError
from trtopt.events import Emit, Progress
from trtopt.types import Comparison, OutputDrift


class Runner(Protocol):
    """Anything that runs a model: `where` says where, in words for a table."""

    @property
    def where(self) -> str:
        """What runs, and where."""
        ...

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs, by name, for one feed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two runners, and their (baseline, candidate) names in the report."""

    baseline: Runner
    candidate: Runner
    names: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How outputs are compared: the kinds of those that are not to be guessed, by output, and the user's own metrics as
    `package.module:function`.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()


BATCH = 8
"""Samples joined into one run where data and models allow it: faster than one by one, small enough for any memory."""


def compare(pair: Pair, dataset: Dataset, measure: Measure, *, emit: Emit, batch: int = BATCH) -> Comparison:
    """Return the drift of the candidate on all samples; `trtopt.compare.gate.judged` adds the verdict.

    `batch` is the most samples joined into one run; one by one where the dataset, or a model, does not keep them apart.

    Raises:
        ModelError: the candidate lacks an output, or gives it another shape or type.
        DataError: a sample cannot be loaded or run.
    """
    metrics: dict[str, OutputMetrics] = {}
    done = 0
    size = batch if _joinable(pair, dataset) else 1
    for joined in batches(dataset, size):
        reference, candidate = pair.baseline.run(joined.feed), pair.candidate.run(joined.feed)
        labels = tuple(dataset.labels[i] for i in joined.indices) if dataset.labels is not None else None
        for name, array in reference.items():
            if name not in candidate:
                raise ModelError(
                    f"the candidate has no output {name}",
                    why=f"it gives {', '.join(candidate)}",
                    fix="Compare a model with what was made from it",
                )
            metrics.setdefault(name, OutputMetrics(name)).add(array, candidate[name], joined.indices, labels)
        done += len(joined.indices)
        emit(Progress("compare", done, len(dataset)))
    outputs = tuple(output.drift(dataset.ids) for output in metrics.values())
    return Comparison(
        baseline=pair.names[0],
        candidate=pair.names[1],
        baseline_ran=pair.baseline.where,
        candidate_ran=pair.candidate.where,
        data=dataset.source,
        samples=done,
        labelled=any("accuracy" in output.values for output in outputs),
        outputs=outputs,
        warnings=(*(f"{dataset.source}: {note}" for note in dataset.notes), *_unfit(metrics, outputs, dataset)),
    )


def _joinable(pair: Pair, dataset: Dataset) -> bool:
    """Whether both models give one row a sample in every output, and so keep joined samples apart.

    A dynamic batch axis of the inputs does not promise that: a Reshape inside may have a batch of 1 written into it,
    and an output's first axis may be time, detections or layers. One sample and then two show which axis grows.
    """
    if not dataset.batched or len(dataset) < 2:
        return False
    for size in (1, 2):
        feed = next(batches(dataset, size, workers=1)).feed
        for runner in (pair.baseline, pair.candidate):
            try:
                outputs = runner.run(feed)
            except DataError:  # if the sample itself is at fault, the run one by one says so
                return False
            if any(array.shape[:1] != (size,) for array in outputs.values()):
                return False
    return True


def _unfit(metrics: Mapping[str, OutputMetrics], outputs: tuple[OutputDrift, ...], dataset: Dataset) -> list[str]:
    """Say that there are labels and that no output's accuracy could be measured with them."""
    if dataset.labels is None or any("accuracy" in output.values for output in outputs):
        return []
    scores = [name for name, output in metrics.items() if output.kind == "scores"]
    why = f"out of range, or FP32 no better than guessing ({', '.join(scores)})" if scores else "no output fits them"
    return [f"{dataset.source}: the labels are not used: {why}; agreement with FP32 is judged instead"]
