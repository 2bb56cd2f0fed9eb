"""Run baseline and candidate on the same samples, and measure the drift.

Touches: nothing itself; the runners run models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trtopt.compare.kinds import check_name
from trtopt.compare.kinds.outputs import Array, Outputs, is_float
from trtopt.compare.metrics import Metrics
from trtopt.compare.own import OwnMetric, opened
from trtopt.data.classes import check_count, score_count
from trtopt.data.dataset import Batch, Dataset, Groups, batches
from trtopt.errors import DataError, OutOfMemoryError, UsageError
from trtopt.events import Emit, Progress, Warned
from trtopt.types import Comparison, OutputDrift


class Runner(Protocol):
    """Anything that runs a model; `where` describes what runs, and where, for tables."""

    @property
    def where(self) -> str:
        """Description of what runs, and where."""
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
    It is halved, with a warning, when memory is exhausted.

    Raises:
        ModelError: the candidate lacks an output, or gives it another shape or type.
        DataError: a sample cannot be loaded or run, or the labels are of other classes than the model's.
        OutOfMemoryError: a single sample does not fit in memory.
        UsageError: `measure` names a kind or an output that there is not, or a function that is no metric.
    """
    for kind in measure.kinds.values():
        check_name(kind)
    own = opened(measure.metrics)
    size = batch if _joinable(pair, dataset) else 1
    groups = dataset.groups if dataset.groups and _apart(pair, dataset.load(0), dataset.groups.size) else None
    samples = groups or dataset
    metrics = Metrics(measure.kinds, apart=size > 1 or groups is not None)
    done = 0
    for outputs in _outputs(pair, dataset, size, emit):
        each = _ungrouped(outputs, groups) if groups else outputs
        if not done and samples.labels is not None:
            _check_classes(dataset, each, measure)
        metrics.add(each)
        for metric in own:
            metric.add(each)
        done += len(each.indices)
        emit(Progress("compare", done, len(samples.ids)))
    drifts = metrics.drifts(samples.ids)
    _check_clashes(own, drifts)
    notes = [f"{dataset.source}: {note}" for note in dataset.notes]
    if dataset.groups and not groups:
        what = "an output has no row for each sample of a group, so that a group counts as one sample"
        notes.append(f"{dataset.source}: {what}" + ("; labels are not used" if dataset.groups.labels else ""))
    notes += metrics.notes() + [f"the code of {metric.source} was run" for metric in own]
    return Comparison(
        baseline=pair.names[0],
        candidate=pair.names[1],
        baseline_ran=pair.baseline.where,
        candidate_ran=pair.candidate.where,
        data=dataset.source,
        samples=done,
        labelled=any("accuracy" in output.values for output in drifts),
        outputs=drifts + tuple(metric.drift() for metric in own),
        warnings=(*notes, *_unfit(drifts, samples, dataset.source)),
    )


def _outputs(pair: Pair, dataset: Dataset, size: int, emit: Emit) -> Iterator[Outputs]:
    """Run both models on all samples, up to `size` at a time, and half as many from where memory is exhausted."""
    for loaded in batches(dataset, size):
        waiting = deque([loaded])
        while waiting:
            part = waiting.popleft()
            count = len(part.indices)
            if count > size:
                waiting.extendleft([_part(part, slice(size, None)), _part(part, slice(size))])
                continue
            try:
                reference, candidate = pair.baseline.run(part.feed), pair.candidate.run(part.feed)
            except OutOfMemoryError:
                if count == 1:
                    raise
                size = (count + 1) // 2
                emit(Warned(f"out of memory at batch {count}; continuing with batch {size}"))
                waiting.appendleft(part)
                continue
            labels = None if dataset.labels is None else tuple(dataset.labels[i] for i in part.indices)
            yield Outputs(
                reference=reference,
                candidate=candidate,
                indices=part.indices,
                labels=labels,
                inputs=_resembling(part.feed, reference),
            )


def _resembling(feed: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the inputs that an output could be a copy of."""
    shapes = {array.shape for array in outputs.values()}
    return {name: array for name, array in feed.items() if array.shape in shapes}


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(indices=batch.indices[rows], feed={name: array[rows] for name, array in batch.feed.items()})


def _ungrouped(outputs: Outputs, groups: Groups) -> Outputs:
    """Return the outputs of a group as those of its samples, without the rows that only filled it."""
    members = groups.members(outputs.indices[0])
    return Outputs(
        reference={name: array[: len(members)] for name, array in outputs.reference.items()},
        candidate={name: array[: len(members)] for name, array in outputs.candidate.items()},
        indices=members,
        labels=None if groups.labels is None else tuple(groups.labels[i] for i in members),
    )


def _joinable(pair: Pair, dataset: Dataset) -> bool:
    """Return whether samples may be joined: the data allow it, and both models keep joined samples apart.

    A dynamic batch axis of the inputs does not promise that: a Reshape inside may have a batch of 1 written into it,
    and an output's first axis may be time, detections or layers. One sample and then two show which axis grows.
    """
    if not dataset.batched or len(dataset) < 2:
        return False
    return all(_apart(pair, next(batches(dataset, size, workers=1)).feed, size) for size in (1, 2))


def _apart(pair: Pair, feed: Mapping[str, Array], size: int) -> bool:
    """Return whether every output of both models has a row for each of the `size` samples of a feed."""
    for runner in (pair.baseline, pair.candidate):
        try:
            outputs = runner.run(feed)
        except (DataError, OutOfMemoryError):  # if the sample itself is at fault, the run one by one says so
            return False
        if any(array.shape[:1] != (size,) for array in outputs.values()):
            return False
    return True


def _check_classes(dataset: Dataset, outputs: Outputs, measure: Measure) -> None:
    """Refuse labels that are of other classes than the model's."""
    rows = {
        name: array.shape[1:]
        for name, array in outputs.reference.items()
        if measure.kinds.get(name, "scores") == "scores"
        and is_float(array)
        and array.shape[:1] == (len(outputs.indices),)
    }
    check_count(dataset, {name: score_count(row) for name, row in rows.items()})


def _check_clashes(own: Sequence[OwnMetric], outputs: Sequence[OutputDrift]) -> None:
    """Refuse a function that has the name of an output: a gate could not tell them apart."""
    names = {output.output for output in outputs}
    for metric in own:
        if metric.name in names:
            raise UsageError(
                f"--metric {metric.source} has the name of output {metric.name}", fix="Rename the function"
            )


def _unfit(outputs: Sequence[OutputDrift], samples: Dataset | Groups, source: str) -> list[str]:
    """Say that there are labels and that no output's accuracy could be measured with them."""
    if samples.labels is None or any("accuracy" in output.values for output in outputs):
        return []
    unfit = {output.output: output.counts["unfit"] for output in outputs if "unfit" in output.counts}
    if not unfit:
        return [f"{source}: the labels are not used: no output fits them"]
    shares = ", ".join(f"{count} of {len(samples.ids)} samples by {name}" for name, count in unfit.items())
    return [f"{source}: the labels do not fit: FP32 itself is right on {shares}"]
