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
from typing import Literal, NamedTuple

import numpy as np

from trtopt.data.dataset import Array, ClassList, Dataset, Feed, Groups, Shown, spread
from trtopt.errors import DataError
from trtopt.types import Dim, TensorSpec

LABEL_KEYS = ("label", "labels")
"""Names of arrays and fields with class indices, unless the model has an input of that name."""

Bad = Literal["refuse", "skip", "keep"]
"""What to do with samples that cannot be used."""

_SHOWN = 5
_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class Header(NamedTuple):
    """Dtype and shape of one array of a sample, read without its values."""

    dtype: str
    shape: tuple[int, ...]


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
        notes=(*samples.notes, f"{len(kept)} of {count} samples are used, spread evenly (--samples {most})"),
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
        warnings.append(f"left out {len(failed)} of {len(samples.ids)} samples: {'; '.join(failed[:_SHOWN])}{more}")
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
        notes=tuple(notes),
        warnings=tuple(warnings),
    )
    batch = _fixed_batch(inputs)
    ones = [shape[:1] == (1,) for fed in shapes for shape in fed]
    if batch == 1 or not all(ones):
        return dataset
    if len(shapes) > 1:
        raise DataError(
            f"{samples.source}: the samples have different shapes",
            why=f"the model's batch is fixed at {batch}, and only samples of one shape can be joined",
        )
    return _grouped(dataset, batch)


def _survey(
    samples: Samples, inputs: tuple[TensorSpec, ...], bad: Bad
) -> tuple[list[int], set[tuple[tuple[int, ...], ...]], dict[int, DataError]]:
    """Return the indices of the samples to use, the set of their shapes as fed, and the error of each bad sample."""
    kept: list[int] = []
    shapes: set[tuple[tuple[int, ...], ...]] = set()
    failures: dict[int, DataError] = {}
    for i, sample in enumerate(samples.ids):
        try:
            fed = check(samples.peek(i), inputs, sample)
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


def check(headers: Mapping[str, Header], inputs: tuple[TensorSpec, ...], sample: str) -> tuple[tuple[int, ...], ...]:
    """Return the shape in which the sample is fed to each input, including an added batch axis, in the inputs' order.

    Raises:
        DataError: the sample lacks an input or has an unknown one, or a dtype or a shape is wrong.
    """
    wanted = ", ".join(f"{spec.name} ({spec.dtype} {shape_text(spec.shape)})" for spec in inputs)
    names = [spec.name for spec in inputs]
    missing = [name for name in names if name not in headers]
    if missing:
        arrays = f"it has {', '.join(map(str, headers))}" if headers else "it has no arrays"
        raise DataError(f"{sample}: no array for input {', '.join(missing)}", why=f"{arrays}; the model takes {wanted}")
    unknown = [str(name) for name in headers if name not in names]
    if unknown:
        raise DataError(f"{sample}: {', '.join(unknown)} is not an input", why=f"the model's inputs are {wanted}")
    batch = _fixed_batch(inputs)
    fed = tuple(_check_one(headers[spec.name], spec, batch, sample) for spec in inputs)
    added = {len(headers[spec.name].shape) < len(spec.shape) for spec in inputs}
    if batch > 1 and len(added) > 1:
        raise DataError(f"{sample}: only some arrays have a batch axis", why=f"the model takes {wanted}")
    return fed


def _check_one(header: Header, spec: TensorSpec, batch: int, sample: str) -> tuple[int, ...]:
    if not _castable(header.dtype, spec.dtype):
        if not hasattr(np, spec.dtype):
            raise DataError(
                f"{sample}: {spec.name} is {header.dtype}",
                why=f"the model takes {spec.dtype}, a type that NumPy files do not have",
                fix="Export the model with an input of another type, and a Cast to this one behind it",
            )
        raise DataError(
            f"{sample}: {spec.name} is {header.dtype}",
            why=f"the model takes {spec.dtype}, and values are never cast silently",
            fix=f"Save the array as {spec.dtype} (array.astype(numpy.{spec.dtype}))",
        )
    rank = len(spec.shape)
    wrong = DataError(
        f"{sample}: {spec.name} has shape {shape_text(header.shape)}",
        why=f"the model takes {shape_text(spec.shape)}, with or without the first axis",
    )
    if len(header.shape) == rank - 1:
        shape, first = (1, *header.shape), spec.shape[0]
        if isinstance(first, int) and first not in (1, batch):
            raise wrong
        dims = list(zip(header.shape, spec.shape[1:], strict=True))
    elif len(header.shape) == rank:
        shape, dims = header.shape, list(zip(header.shape, spec.shape, strict=True))
    else:
        raise wrong
    # A dynamic size may be 0, such as the length of the past.
    if any(isinstance(want, int) and have != want for have, want in dims):
        raise wrong
    return shape


def fit(feed: Feed, inputs: tuple[TensorSpec, ...], sample: str) -> Feed:
    """Return the sample in the form that the model takes: the inputs' dtypes, C order, with a batch axis.

    Raises:
        DataError: a floating-point array contains NaN or plus infinity. Minus infinity may be an attention mask.
    """
    fitted: Feed = {}
    for spec in inputs:
        array = feed[spec.name]
        # NaN and plus infinity are not less than infinity.
        if array.dtype.kind == "f" and not np.less(array, np.inf).all():
            bad = int(array.size - np.less(array, np.inf).sum())
            raise DataError(
                f"{sample}: {bad} of {array.size} values of {spec.name} are NaN or infinite",
                fix="Fix the sample, or leave such samples out with --skip-bad",
            )
        # A NumPy file may store values in the other byte order.
        native = array.dtype.newbyteorder("=") if array.dtype.name == spec.dtype else np.dtype(spec.dtype)
        array = np.ascontiguousarray(array, dtype=native).reshape(array.shape)
        fitted[spec.name] = array[np.newaxis] if array.ndim < len(spec.shape) else array
    return fitted


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


def shape_text(shape: tuple[Dim, ...]) -> str:
    """Return a shape as text, such as `[batch, 3, 224, 224]`."""
    return f"[{', '.join(map(str, shape))}]"


def _castable(have: str, want: str) -> bool:
    """Return whether the dtypes are equal, or both are integer types and `want` can represent all values of `have`."""
    if have == want:
        return True
    return {have, want} <= _INTEGERS and np.can_cast(np.dtype(have), np.dtype(want), "safe")


def _fixed_batch(inputs: tuple[TensorSpec, ...]) -> int:
    """Return the batch size if it is fixed: the first dimension that all inputs share. Otherwise return 1."""
    firsts = {spec.shape[0] if spec.shape else 1 for spec in inputs}
    first = firsts.pop() if len(firsts) == 1 else 1
    return first if isinstance(first, int) else 1


def _grouped(dataset: Dataset, size: int) -> Dataset:
    """Return the samples as feeds of `size` samples each."""
    groups, count = Groups(size=size, ids=dataset.ids, labels=dataset.labels), len(dataset)
    members = [groups.members(feed) for feed in range(-(-count // size))]
    missing = len(members) * size - count

    def load(feed: int) -> Feed:
        # The last feed is filled up with the first samples, not with copies of the last one: calibration measures whole
        # feeds, and no sample should weigh much more there than another.
        samples = [dataset.load(i % count) for i in range(feed * size, (feed + 1) * size)]
        return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}

    note = f"the model's batch is fixed at {size}: {count} samples are fed in groups of {size}"
    if missing:
        note += f", the last one filled with {missing} sample{'s' * (missing != 1)} from the start"
    return Dataset(
        source=dataset.source,
        digest=dataset.digest,
        ids=tuple(f"{dataset.ids[places[0]]} to {dataset.ids[places[-1]]}" for places in members),
        load=load,
        batched=False,
        class_list=dataset.class_list,
        shapes=tuple(tuple((size, *shape[1:]) for shape in fed) for fed in dataset.shapes),
        groups=groups,
        shown=dataset.shown,
        notes=(*dataset.notes, note),
        warnings=dataset.warnings,
    )
