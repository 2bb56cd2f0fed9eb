"""Conversion of a reader's samples into a `Dataset`, checked against the model's inputs.

Batch axis: an array whose rank is one less than the input's gets a first axis of size 1. An array of the input's rank
is fed unchanged. Samples may be joined into batches (`Dataset.batched`) if the first dimension of every input is
dynamic, the first axis of every array is 1, and all samples have the same shapes. If the model's batch is fixed at
N > 1, N consecutive samples are one feed.

Dtypes: an array must have the input's dtype. The only conversion is from an integer type to a wider one that can
represent all of its values (for example int32 to int64).

Touches: nothing itself; `read` and `peek` open the files of the data source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from trtopt.data.checks import Header, check, fit, fixed_batch, shape_text
from trtopt.data.dataset import Array, ClassList, Dataset, Feed, Shown, grouped, spread
from trtopt.errors import DataError
from trtopt.types import TensorSpec
from trtopt.wording import counted

LABEL_KEYS = ("label", "labels")
"""Names of arrays and fields with class indices, unless the model has an input of that name."""

Bad = Literal["refuse", "skip", "keep"]
"""Treatment of samples that cannot be used."""

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples as a reader returns them, without an added batch axis and not yet checked.

    `peek(i)` returns the header of every array of sample i and must be fast. `read(i)` returns the arrays. Both raise
    a DataError that names the sample if it cannot be read. Several threads call `read` at once.
    """

    source: str
    digest: str
    ids: tuple[str, ...]
    peek: Callable[[int], Mapping[str, Header]]
    read: Callable[[int], Feed]
    labels: tuple[int, ...] | None = None
    class_list: ClassList | None = None
    shown: Shown = field(default_factory=Shown)
    on_demand: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def at_most(samples: Samples, most: int | None) -> Samples:
    """Return at most that many samples, spread evenly, with a note if some are left out (None: all)."""
    count = len(samples.ids)
    if most is None or most >= count:
        return samples
    kept = spread(count, most)
    return replace(
        samples,
        digest=hashlib.sha256(f"{samples.digest} {kept}".encode()).hexdigest(),
        ids=tuple(samples.ids[i] for i in kept),
        peek=lambda i: samples.peek(kept[i]),
        read=lambda i: samples.read(kept[i]),
        labels=None if samples.labels is None else tuple(samples.labels[i] for i in kept),
        shown=_only(samples.shown, kept),
        notes=(*samples.notes, f"--samples {most}: {len(kept)} of {counted(count, 'sample')}, spread evenly"),
    )


def _only(shown: Shown, kept: Sequence[int]) -> Shown:
    """Return how the samples with the indices `kept` are shown."""
    text = shown.text
    return shown if text is None else replace(shown, text=lambda i: text(kept[i]))


def to_dataset(samples: Samples, inputs: tuple[TensorSpec, ...], *, bad: Bad = "refuse") -> Dataset:
    """Return the samples as a dataset for the model's inputs.

    Names, dtypes and shapes of all samples are checked now; values are checked when a sample is loaded. If bad samples
    are skipped, every sample is also loaded once now, and those that fail are left out and listed in `warnings`. If
    they are kept, `load` raises the error of each.

    Raises:
        DataError: there are no samples, or one does not fit the model (`refuse`).
    """
    kept, shapes, failures = _survey(samples, inputs, bad)
    failed = [_line(error) for error in failures.values()] if bad == "skip" else []
    if not kept:
        why = f"all {len(failed)} are unusable, the first because {failed[0]}" if failed else "the source is empty"
        raise DataError(f"{samples.source}: no samples", why=why)
    notes, warnings = list(samples.notes), list(samples.warnings)
    if failed:
        more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        left = f"left out {len(failed)} of {counted(len(samples.ids), 'sample')}"
        warnings.append(f"{left}: {'; '.join(failed[:_SHOWN])}{more}")
    dynamic = all(spec.shape and isinstance(spec.shape[0], str) for spec in inputs)
    if dynamic and len(shapes) > 1:
        notes.append("the samples have different shapes, so they are fed one at a time")
    labels = samples.labels

    def load(place: int) -> Feed:
        if error := failures.get(kept[place]):
            raise DataError(error.what, why=error.why, fix=error.fix)
        return fit(samples.read(kept[place]), inputs, samples.ids[kept[place]])

    dataset = Dataset(
        source=samples.source,
        digest=samples.digest,
        ids=tuple(samples.ids[i] for i in kept),
        load=load,
        batched=dynamic and len(shapes) == 1 and all(shape[:1] == (1,) for fed in shapes for shape in fed),
        labels=None if labels is None else tuple(labels[i] for i in kept),
        class_list=samples.class_list,
        shapes=tuple(sorted(shapes)),
        shown=_only(samples.shown, kept),
        on_demand=samples.on_demand,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )
    batch = fixed_batch(inputs)
    ones = [shape[:1] == (1,) for fed in shapes for shape in fed]
    if batch == 1 or not all(ones):
        return dataset
    if len(shapes) > 1:
        raise DataError(
            f"{samples.source}: the samples have different shapes",
            why=f"the model's batch is fixed at {batch}, and only samples of one shape can be joined",
        )
    return _fixed(dataset, batch)


def _survey(
    samples: Samples, inputs: tuple[TensorSpec, ...], bad: Bad
) -> tuple[list[int], set[tuple[tuple[int, ...], ...]], dict[int, DataError]]:
    """Return the indices of the samples to use, the set of their shapes as fed, and the error of each bad sample."""
    kept: list[int] = []
    shapes: set[tuple[tuple[int, ...], ...]] = set()
    failures: dict[int, DataError] = {}
    checked: dict[tuple[tuple[str, Header], ...], tuple[tuple[int, ...], ...]] = {}
    for i, sample in enumerate(samples.ids):
        try:
            headers = samples.peek(i)
            key = tuple(headers.items())
            # Most samples have the headers of one before.
            fed = checked[key] if key in checked else checked.setdefault(key, check(headers, inputs, sample))
            if bad == "skip":
                fit(samples.read(i), inputs, sample)
        except DataError as error:
            if bad == "refuse":
                raise
            # A copy: the error itself would keep the frames that it went through, with open files, in memory.
            failures[i] = DataError(error.what, why=error.why, fix=error.fix)
            if bad == "keep":
                kept.append(i)
            continue
        kept.append(i)
        shapes.add(fed)
    return kept, shapes, failures


def _line(error: DataError) -> str:
    return " ".join((f"{error.what}: {error.why}" if error.why else error.what).split())


def class_indices(values: Array, count: int, where: str) -> tuple[int, ...]:
    """Return labels as ints.

    Raises:
        DataError: `values` is not an array of `count` non-negative integers with one axis.
    """
    if values.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {values.dtype.name}", why="a label must be the integer index of a class")
    if values.shape != (count,):
        raise DataError(
            f"{where}: labels have shape {shape_text(values.shape)}", why=f"the shape for {count} samples is [{count}]"
        )
    if count and values.min() < 0:
        raise DataError(f"{where}: a label is {values.min()}", why="a label must be a class index, 0 or more")
    return tuple(int(value) for value in values)


def single_labels(values: list[Array | None], ids: tuple[str, ...], source: str) -> tuple[int, ...] | None:
    """Return the labels of samples that each contain their own, or None if none of them has one.

    Raises:
        DataError: only some samples have a label, or a label is not a class index.
    """
    if all(value is None for value in values):
        return None
    labels: list[int] = []
    for value, sample in zip(values, ids, strict=True):
        if value is None:
            raise DataError(f"{sample}: no label", why=f"other samples of {source} have one")
        labels += class_indices(value.reshape(-1), 1, sample)
    return tuple(labels)


def _fixed(dataset: Dataset, size: int) -> Dataset:
    """Return the samples as feeds of `size` samples each, and a note of that."""
    count = len(dataset)
    note = f"the model's batch is fixed at {size}: {count} samples are fed in groups of {size}"
    if missing := -count % size:
        note += f", the last one filled with {counted(missing, 'sample')} from the start"
    return replace(grouped(dataset, size), notes=(*dataset.notes, note))
