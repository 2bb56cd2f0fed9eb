"""Run baseline and candidate on the same samples, and judge the difference.

Touches: nothing itself; the runners run models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from trtopt.compare.gate import judge, parse_gates
from trtopt.compare.metrics import Array, OutputMetrics, output_kind
from trtopt.data.dataset import Dataset, batches
from trtopt.errors import ModelError
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


BATCH = 8
"""Samples joined into one run where the data allows it: faster than one by one, small enough for any memory."""


def compare(pair: Pair, dataset: Dataset, gates: str, *, emit: Emit) -> Comparison:
    """Return the drift of the candidate on all samples, and the verdict of the gates (as the user wrote them).

    Raises:
        ModelError: the candidate lacks an output, or gives it another shape.
        UsageError: the gates do not parse.
        DataError: a sample cannot be loaded or run.
    """
    thresholds = parse_gates(gates)
    metrics: dict[str, OutputMetrics] = {}
    done = 0
    for batch in batches(dataset, BATCH):
        reference, candidate = pair.baseline.run(batch.feed), pair.candidate.run(batch.feed)
        labels = tuple(dataset.labels[i] for i in batch.indices) if dataset.labels is not None else None
        for name, array in reference.items():
            if name not in candidate:
                raise ModelError(
                    f"the candidate has no output {name}",
                    why=f"it gives {', '.join(candidate)}",
                    fix="Compare a model with what was made from it",
                )
            if name not in metrics:
                kind = output_kind(name, array, len(batch.indices), labelled=labels is not None)
                metrics[name] = OutputMetrics(name, kind)
            metrics[name].add(array, candidate[name], batch.indices, labels)
        done += len(batch.indices)
        emit(Progress("compare", done, len(dataset)))
    outputs = tuple(OutputDrift(output=m.name, kind=m.kind, values=m.values()) for m in metrics.values())
    results = judge(outputs, thresholds, done)
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
        warnings=tuple(_name_bad(metrics.values(), dataset)),
    )


def _name_bad(metrics: Iterable[OutputMetrics], dataset: Dataset) -> list[str]:
    lines = []
    for output in metrics:
        if output.bad_samples:
            first = ", ".join(dataset.ids[i] for i in output.bad_samples[:3])
            lines.append(f"output {output.name}: NaN or Inf in {len(output.bad_samples)} samples, first {first}")
    return lines
