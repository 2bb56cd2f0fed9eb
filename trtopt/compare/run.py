"""Run baseline and candidate on the same samples, and judge the difference.

Touches: nothing itself; the runners run models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trtopt.compare.gate import judge, parse_gates
from trtopt.compare.metrics import Array, OutputMetrics
from trtopt.data.dataset import Dataset, batches
from trtopt.errors import DataError, ModelError
from trtopt.events import Emit, Progress
from trtopt.types import Comparison, GateResult, OutputDrift


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


BATCH = 8
"""Samples joined into one run where data and models allow it: faster than one by one, small enough for any memory."""

_WORST = 3


def compare(pair: Pair, dataset: Dataset, gates: str, *, emit: Emit, batch: int = BATCH) -> Comparison:
    """Return the drift of the candidate on all samples, and the verdict of the gates (as the user wrote them).

    `batch` is the most samples joined into one run; one by one where the dataset, or a model, does not keep them apart.

    Raises:
        ModelError: the candidate lacks an output, or gives it another shape or type.
        UsageError: the gates do not parse.
        DataError: a sample cannot be loaded or run.
    """
    thresholds = parse_gates(gates)
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
    outputs = tuple(output.drift() for output in metrics.values())
    first_bad = {output.name: _first_bad(output, dataset) for output in metrics.values() if output.bad}
    results = judge(outputs, thresholds, done, first_bad)
    return Comparison(
        baseline=pair.names[0],
        candidate=pair.names[1],
        baseline_ran=pair.baseline.where,
        candidate_ran=pair.candidate.where,
        data=dataset.source,
        samples=done,
        labelled=any("accuracy" in output.values for output in outputs),
        outputs=outputs,
        gates=results,
        verdict="pass" if results and all(result.passed for result in results) else "fail",
        warnings=(
            *(f"{dataset.source}: {note}" for note in dataset.notes),
            *_unfit(metrics, outputs, dataset),
            *_ungated(outputs, results),
            *_farthest(metrics, results, dataset),
        ),
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


def _first_bad(output: OutputMetrics, dataset: Dataset) -> str:
    origin = f"; FP32 itself gives it in {output.bad_fp32}" if output.bad_fp32 else ""
    return dataset.ids[output.bad[0]] + origin


def _unfit(metrics: Mapping[str, OutputMetrics], outputs: tuple[OutputDrift, ...], dataset: Dataset) -> list[str]:
    """Say that there are labels and that no output's accuracy could be measured with them."""
    if dataset.labels is None or any("accuracy" in output.values for output in outputs):
        return []
    scores = [name for name, output in metrics.items() if output.kind == "scores"]
    why = f"out of range, or FP32 no better than guessing ({', '.join(scores)})" if scores else "no output fits them"
    return [f"{dataset.source}: the labels are not used: {why}; agreement with FP32 is judged instead"]


def _ungated(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Say which outputs the user's gates leave alone: a pass says nothing of them."""
    held = {gate.output for gate in gates}
    free = [output.output for output in outputs if output.output not in held]
    return [f"no gate looks at output {', '.join(free)}: it may be anything"] if free else []


def _farthest(metrics: Mapping[str, OutputMetrics], gates: Sequence[GateResult], dataset: Dataset) -> list[str]:
    """Name the samples to look at first where a gate failed."""
    failed = dict.fromkeys(gate.output for gate in gates if not gate.passed and gate.output in metrics)
    worst = {name: [dataset.ids[i] for i in metrics[name].farthest(_WORST)] for name in failed}
    return [f"output {name} is farthest from FP32 in {', '.join(ids)}" for name, ids in worst.items() if ids]
