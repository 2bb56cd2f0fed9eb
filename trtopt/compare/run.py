"""Comparison of a candidate with the baseline on the same samples.

Touches: nothing itself; the runners run models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trtopt.compare.custom import OwnMetric, opened
from trtopt.compare.kinds import check_name
from trtopt.compare.measures.outputs import Array, Outputs, is_float
from trtopt.compare.metrics import Metrics
from trtopt.compare.pair import Pair
from trtopt.compare.rows import apart, joinable
from trtopt.compare.witness import Witness
from trtopt.data.classes import check_count, score_count
from trtopt.data.dataset import Batch, Dataset, Groups, batches
from trtopt.data.preview import Preview, preview
from trtopt.errors import OutOfMemoryError, UsageError
from trtopt.events import Emit, Progress, Warned
from trtopt.parallel import in_order
from trtopt.shards.shard import WHOLE, Shard
from trtopt.types import Comparison, OutputDrift


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The user's choice of metrics.

    `kinds` maps an output to the kind that it is read as; other outputs are recognized. `metrics` are custom metrics,
    written as `package.module:function`.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()


BATCH = 8
"""Default number of samples per run: much faster than single samples, and small enough for most memories."""
WORKERS = 2
"""Number of batches to run at once, where the runners have several callers. Each holds the activations of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The outputs of both models for some samples, in order, as they are computed or were recorded.

    Attributes:
        names: the models' names in the report.
        where: what ran: the baseline, the candidate and, if the candidate is an engine, its graph.
        size: the largest number of samples per run.
        groups: the samples of each feed, if their batch is fixed and every output has a row for each of them.
        outputs: the outputs, batch by batch.
    """

    names: tuple[str, str]
    where: tuple[str, ...]
    size: int
    groups: Groups | None
    outputs: Iterator[Outputs]


def compare(pair: Pair, dataset: Dataset, measure: Measure, *, emit: Emit, batch: int = BATCH) -> Comparison:
    """Return the drift of the candidate on all samples; `trtopt.compare.gate.judged` adds the verdict.

    Samples run one by one if the dataset or a model cannot batch them.

    Args:
        pair: the models.
        dataset: the samples.
        measure: the kinds of outputs and the custom metrics.
        emit: receives progress and warnings.
        batch: the largest number of samples per run. It is halved, with a warning, when memory is exhausted.

    Raises:
        ModelError: an output of the candidate is missing, or has another shape or type than the baseline's.
        DataError: a sample cannot be loaded or run, or the labels belong to other classes than the model's.
        OutOfMemoryError: a single sample does not fit in memory.
        UsageError: `measure` names an unknown kind or output, or a custom metric cannot be used.
    """
    for kind in measure.kinds.values():
        check_name(kind)
    opened(measure.metrics)  # a misspelt name must fail before anything runs
    return measured(run(pair, dataset, emit=emit, batch=batch), dataset, measure, emit=emit)


def run(pair: Pair, dataset: Dataset, *, emit: Emit, batch: int = BATCH, shard: Shard = WHOLE) -> Ran:
    """Return the outputs of both models for a shard of the samples: whole batches, as the undivided data set has them.

    Raises:
        as `compare`, when the outputs are taken.
    """
    size = batch if joinable(pair, dataset) else 1
    # With a fixed batch, samples are measured one by one if every output has a row for each of them.
    groups = dataset.groups if dataset.groups and apart(pair, dataset.load(0), dataset.groups.size) else None
    part = shard.of(-(-len(dataset) // size))
    among = range(part.start * size, min(part.stop * size, len(dataset)))
    return Ran(
        names=pair.names,
        where=tuple(runner.where for runner in pair.runners),
        size=size,
        groups=groups,
        outputs=_outputs(pair, dataset, size, emit, among),
    )


def measured(ran: Ran, dataset: Dataset, measure: Measure, *, emit: Emit) -> Comparison:
    """Return the drift that the outputs for all samples show.

    Raises:
        as `compare`.
    """
    custom = opened(measure.metrics)
    groups = ran.groups
    samples = groups or dataset
    apart = ran.size > 1 or groups is not None
    classes = dataset.class_list.count if dataset.class_list else max(samples.labels or (-1,)) + 1
    metrics = Metrics(measure.kinds, apart=apart, names=dataset.shown.names, classes=classes)
    witness = Witness(apart=apart) if len(ran.where) > 2 else None
    done = 0
    for outputs in ran.outputs:
        per_sample = _ungrouped(outputs, groups) if groups else outputs
        if witness is not None:
            witness.add(per_sample)
        if not done and samples.labels is not None:
            _check_classes(dataset, per_sample, measure)
        metrics.add(per_sample)
        for metric in custom:
            metric.add(per_sample)
        done += len(per_sample.indices)
        emit(Progress("compare", done, len(samples.ids)))
    drifts = metrics.drifts(samples.ids)
    _check_clashes(custom, drifts)
    warnings = _unfit(drifts, samples, dataset.source)
    if dataset.groups and not groups:
        note = "an output does not have one row per sample of a group, so each group counts as one sample"
        warnings.append(f"{dataset.source}: {note}" + ("; labels are not used" if dataset.groups.labels else ""))
    return Comparison(
        baseline=ran.names[0],
        candidate=ran.names[1],
        baseline_ran=ran.where[0],
        candidate_ran=ran.where[1],
        data=dataset.source,
        samples=done,
        labelled=any("accuracy" in output.values for output in drifts),
        outputs=drifts + tuple(metric.drift() for metric in custom),
        engine=witness.drifts(samples.ids) if witness else (),
        graph_ran=ran.where[2] if witness else "",
        warnings=tuple(warnings),
        exhibits=metrics.exhibits(drifts, samples.ids),
        notes=(*metrics.notes(), *(f"the code of {metric.source} was run" for metric in custom)),
    )


def _outputs(pair: Pair, dataset: Dataset, size: int, emit: Emit, among: range) -> Iterator[Outputs]:
    """Yield the outputs of both models for these samples, up to `size` at a time.

    When memory is exhausted, the size is halved for the rest of the samples.
    """

    def run(loaded: Batch) -> list[Outputs]:
        nonlocal size
        done = []
        # Parts of the batch that are still to run, in order.
        waiting = deque([loaded])
        while waiting:
            part = waiting.popleft()
            count = len(part.indices)
            if count > size:  # the batch was loaded before the size was halved
                waiting.extendleft([_part(part, slice(size, None)), _part(part, slice(size))])
                continue
            try:
                results = [runner.run(part.feed) for runner in pair.runners]
            except OutOfMemoryError:
                if count == 1:
                    raise
                size = (count + 1) // 2
                emit(Warned(f"out of memory at batch {count}; continuing with batch {size}"))
                waiting.appendleft(part)
                continue
            labels = None if dataset.labels is None else tuple(dataset.labels[i] for i in part.indices)
            done.append(
                Outputs(
                    reference=results[0],
                    candidate=results[1],
                    graph=results[2] if len(results) > 2 else {},
                    indices=part.indices,
                    labels=labels,
                    inputs=_resembling(part.feed, results[0]),
                    previews=_previews(part, dataset),
                )
            )
        return done

    workers = min(WORKERS, *(getattr(runner, "callers", 1) for runner in pair.runners))
    for parts in in_order(run, batches(dataset, size, among=among), workers):
        yield from parts


def _resembling(feed: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the inputs that have the shape of an output, which could be a copy of them."""
    shapes = {array.shape for array in outputs.values()}
    return {name: array for name, array in feed.items() if array.shape in shapes}


def _previews(batch: Batch, dataset: Dataset) -> tuple[Preview, ...]:
    """Return a preview of every sample of a batch; of each member, if the samples are fed in groups."""
    indices = dataset.groups.members(batch.indices[0]) if dataset.groups else batch.indices
    if dataset.groups is None and len(indices) == 1:
        return (preview(batch.feed, dataset.shown, indices[0]),)
    return tuple(
        preview({name: array[row : row + 1] for name, array in batch.feed.items()}, dataset.shown, index)
        for row, index in enumerate(indices)
    )


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(indices=batch.indices[rows], feed={name: array[rows] for name, array in batch.feed.items()})


def _ungrouped(outputs: Outputs, groups: Groups) -> Outputs:
    """Return the outputs of a group per sample, without the rows that only fill it up."""
    members = groups.members(outputs.indices[0])
    return Outputs(
        reference={name: array[: len(members)] for name, array in outputs.reference.items()},
        candidate={name: array[: len(members)] for name, array in outputs.candidate.items()},
        inputs={name: array[: len(members)] for name, array in outputs.inputs.items()},
        graph={name: array[: len(members)] for name, array in outputs.graph.items()},
        previews=outputs.previews[: len(members)],
        indices=members,
        labels=None if groups.labels is None else tuple(groups.labels[i] for i in members),
    )


def _check_classes(dataset: Dataset, outputs: Outputs, measure: Measure) -> None:
    """Raise DataError if the labels belong to other classes than the model's."""
    scores = {}
    for name, array in outputs.reference.items():
        may_be_scores = measure.kinds.get(name, "scores") == "scores" and is_float(array)
        if may_be_scores and array.shape[:1] == (len(outputs.indices),):
            scores[name] = score_count(array.shape[1:])
    check_count(dataset, scores)


def _check_clashes(custom: Sequence[OwnMetric], outputs: Sequence[OutputDrift]) -> None:
    """Raise UsageError for a custom metric with the name of an output: a gate could not tell them apart."""
    names = {output.output for output in outputs}
    for metric in custom:
        if metric.name in names:
            raise UsageError(
                f"--metric {metric.source} has the name of output {metric.name}", fix="Rename the function"
            )


def _unfit(outputs: Sequence[OutputDrift], samples: Dataset | Groups, source: str) -> list[str]:
    """Return a warning if there are labels but no output's accuracy could be measured with them."""
    if samples.labels is None or any("accuracy" in output.values for output in outputs):
        return []
    unfit = {output.output: output.counts["unfit"] for output in outputs if "unfit" in output.counts}
    if not unfit:
        return [f"{source}: the labels are not used: they fit no output"]
    shares = ", ".join(f"{count} of {len(samples.ids)} samples by {name}" for name, count in unfit.items())
    return [f"{source}: the labels do not fit: FP32 itself is right on {shares}"]
