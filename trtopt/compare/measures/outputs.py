"""Outputs of both models for a batch of samples, and the sums that all numeric metrics share.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from trtopt.data.preview import Preview
from trtopt.errors import ModelError
from trtopt.wording import counted

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TOLERANCE = 1e-3
"""Allowance for rounding: probabilities may exceed [0, 1], and their sum may differ from 1, by this much.

A sigmoid in float32 sometimes returns 1.0000001, and rounding in 16 bits is coarser.
"""

MASK = 1e9
"""Magnitude from which on a number means infinity, if both models have it."""

_CHUNK = 1 << 15
"""Number of values of a row that are converted to float64 at once, so that they fit in the CPU's cache."""

_BUFFER = 1 << 13
"""Number of values that numpy adds up in one go (`numpy.getbufsize`)."""

_CLASSES = 64
"""Number of classes that a segmentation map rarely exceeds."""

_FIX = "Compare a model with a candidate that was made from it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One output of both models as [n, values], with sums per sample.

    An infinity that both models have in the same place counts as equal and adds nothing to any sum.

    Attributes:
        x, y: FP32's and the candidate's values, in the dtype that the models returned.
        indices: the samples' indices in the dataset.
        signal: sum of x^2 per sample, float64 [n].
        error: sum of (x - y)^2 per sample, float64 [n].
        absolute: sum of |x - y| per sample, float64 [n].
        product: sum of x y per sample, float64 [n].
        energy: sum of y^2 per sample, float64 [n].
        largest: largest |x - y| per sample, float64 [n].
        comparable: false for a sample with a NaN, or with an infinity that only one model has, bool [n].
        comparable_fp32: false for a sample in which FP32 has that NaN or infinity, bool [n].
    """

    x: Array
    y: Array
    indices: tuple[int, ...]
    signal: Floats
    error: Floats
    absolute: Floats
    product: Floats
    energy: Floats
    largest: Floats
    comparable: Mask
    comparable_fp32: Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Outputs of both models by name, for the samples at `indices` of the dataset, with their class `labels`.

    With more than one sample, the first axis of every output is the sample axis. `inputs` are the models' inputs by
    name, without those that no metric needs. `graph` are the outputs of a candidate engine's own graph. `previews` show
    the samples to people.
    """

    reference: Mapping[str, Array]
    candidate: Mapping[str, Array]
    indices: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    inputs: Mapping[str, Array] = field(default_factory=dict)
    graph: Mapping[str, Array] = field(default_factory=dict)
    previews: tuple[Preview, ...] = ()
    _rows: dict[str, Rows] = field(default_factory=dict, repr=False)

    def both(self, name: str) -> tuple[Array, Array]:
        """Return FP32's and the candidate's output, which have the same shape and are both floating-point or both not.

        Raises:
            ModelError: the shapes differ, only one output is floating-point, or the first axis is not the batch.
        """
        reference, candidate = self.reference[name], self.candidate[name]
        if reference.shape != candidate.shape:
            raise ModelError(
                f"output {name} has another shape in the candidate",
                why=f"{list(reference.shape)} in FP32, {list(candidate.shape)} in the candidate",
                fix=_FIX,
            )
        self._check_type(name)
        if len(self.indices) != 1 and reference.shape[:1] != (len(self.indices),):
            raise ModelError(
                f"output {name} does not have one row per sample",
                why=f"its shape is {list(reference.shape)} for {counted(len(self.indices), 'sample')}",
                fix="Run the samples one by one",
            )
        return reference, candidate

    def differs_in_rows(self, name: str) -> bool:
        """Return whether the two outputs differ in the number of rows, and only in that.

        The length of such an output depends on the data, as after non-maximum suppression. Rows are one axis of a
        sample that is fed alone, such as `[k, ...]` or the `[rank, k]` of NonZero, or the second axis of `[n, k,
        width]`. Any other difference in shape is an error of the candidate.

        Raises:
            ModelError: only one of the two outputs is floating-point.
        """
        reference, candidate = self.reference[name].shape, self.candidate[name].shape
        if len(reference) != len(candidate) or reference == candidate:
            return False
        self._check_type(name)
        alone = len(self.indices) == 1
        differing = [axis for axis, sizes in enumerate(zip(reference, candidate, strict=True)) if len(set(sizes)) > 1]
        return (len(differing) == 1 and alone) or (differing == [1] and len(reference) == 3)

    def rows(self, name: str) -> Rows:
        """Return the output as rows. They are computed once and shared by all readers.

        Raises:
            ModelError: as `both`.
        """
        if name not in self._rows:
            reference, candidate = self.both(name)
            count = len(self.indices)
            # The width is given, not -1: numpy cannot infer it for an empty output.
            width = reference.size // count
            self._rows[name] = _measured(reference.reshape(count, width), candidate.reshape(count, width), self.indices)
        return self._rows[name]

    def _check_type(self, name: str) -> None:
        reference, candidate = self.reference[name], self.candidate[name]
        if is_float(reference) != is_float(candidate):
            raise ModelError(
                f"output {name} has another type in the candidate",
                why=f"{reference.dtype.name} in FP32, {candidate.dtype.name} in the candidate",
                fix=_FIX,
            )


def is_image(array: Array) -> bool:
    """Return whether an output contains 8-bit images: two spatial axes, and more levels than a map of classes has."""
    if array.dtype != np.uint8 or array.ndim < 3:
        return False
    return np.unique(array).size > _CLASSES


def is_float(array: Array) -> bool:
    """Return whether the dtype is floating-point, including ml_dtypes' bfloat16, which numpy does not count as one."""
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"


def are_probabilities(values: Array) -> bool:
    """Return whether all values are in [0, 1], up to the rounding of a sigmoid or a softmax."""
    return not values.size or (float(values.min()) >= -TOLERANCE and float(values.max()) <= 1 + TOLERANCE)


def is_softmax(scores: Array, axis: int) -> bool:
    """Return whether the numbers along the axis are non-negative and sum to 1, up to rounding."""
    sums = np.asarray(scores).sum(axis=axis, dtype=np.float64)
    return are_probabilities(scores) and bool(np.allclose(sums, 1.0, atol=TOLERANCE))


def without_masks(batch: Outputs) -> Outputs:
    """Return the outputs with infinity for the numbers that mean it, such as the score -3.4e38 of an excluded class.

    These are the magnitudes of at least `MASK` that both models have in the same place. Their energy would hide every
    other error. An infinity that both models share adds nothing to any sum.
    """
    reference, candidate = dict(batch.reference), dict(batch.candidate)
    for name, x in batch.reference.items():
        y = candidate[name]
        # fmax ignores NaN.
        if not is_float(x) or x.shape != y.shape or not float(np.fmax.reduce(np.abs(x), axis=None, initial=0)) >= MASK:
            continue
        wide = x.astype(np.float64)
        masked = (np.abs(wide) >= MASK) & (wide == y.astype(np.float64))
        infinity = np.copysign(np.inf, wide)
        reference[name], candidate[name] = (np.where(masked, infinity, v).astype(v.dtype) for v in (x, y))
    return replace(batch, reference=reference, candidate=candidate)


def joined(batches: Sequence[Outputs]) -> Outputs:
    """Return several batches as one. The first axis of every output must be the sample axis, and other axes equal."""
    if len(batches) == 1:
        return batches[0]
    labels = None
    if batches[0].labels is not None:
        labels = tuple(label for batch in batches for label in batch.labels or ())
    return Outputs(
        reference=_concatenated([batch.reference for batch in batches]),
        candidate=_concatenated([batch.candidate for batch in batches]),
        inputs=_concatenated([batch.inputs for batch in batches]),
        indices=tuple(index for batch in batches for index in batch.indices),
        previews=tuple(each for batch in batches for each in batch.previews),
        labels=labels,
    )


def _concatenated(arrays: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([named[name] for named in arrays]) for name in arrays[0]}


def _measured(x: Array, y: Array, indices: tuple[int, ...]) -> Rows:
    """Return the rows with their sums, computed in float64 and in chunks.

    The sums must not depend on the batch, not even in the last bit. A row is therefore always split at the same places,
    and rows are added up together only if all of them fit in numpy's buffer, because numpy starts a new partial sum at
    its end.
    """
    count, width = x.shape
    sums = np.zeros((6, count))
    step = max(1, _BUFFER // max(width, 1))
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes NaN, and NaN fails every gate
        for top in range(0, count, step):
            rows = slice(top, top + step)
            for left in range(0, width, _CHUNK):
                part = slice(left, left + _CHUNK)
                _add(sums[:, rows], x[rows, part].astype(np.float64), y[rows, part].astype(np.float64))
    signal, error, absolute, product, energy, largest = sums
    comparable, comparable_fp32 = np.ones(count, np.bool_), np.ones(count, np.bool_)
    for i in np.flatnonzero(~(np.isfinite(signal) & np.isfinite(energy))):
        comparable[i], comparable_fp32[i] = _remeasured(sums[:, i : i + 1], x[i], y[i])
    return Rows(
        x=x,
        y=y,
        indices=indices,
        signal=signal,
        error=error,
        absolute=absolute,
        product=product,
        energy=energy,
        largest=largest,
        comparable=comparable,
        comparable_fp32=comparable_fp32,
    )


def _add(sums: Floats, a: Floats, b: Floats) -> None:
    """Add values of some rows, [rows, n], to their sums, [6, rows], in the order of `Rows`. `a` is overwritten."""
    signal, error, absolute, product, energy, largest = sums
    signal += _dot(a, a)
    product += _dot(a, b)
    energy += _dot(b, b)
    np.abs(np.subtract(a, b, out=a), out=a)
    error += _dot(a, a)
    absolute += a.sum(axis=1)
    np.maximum(largest, a.max(axis=1), out=largest)


def _remeasured(sums: Floats, x: Array, y: Array) -> tuple[bool, bool]:
    """Return the `comparable` and `comparable_fp32` of a row whose sums are not finite.

    If both models share its infinities, its sums are computed again without them.
    """
    a, b = x.astype(np.float64), y.astype(np.float64)
    shared = np.isinf(a) & (a == b)
    fine_fp32, fine = (bool((np.isfinite(values) | shared).all()) for values in (a, b))
    if fine_fp32 and fine and shared.any():
        sums[:] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for left in range(0, len(a), _CHUNK):
                part = slice(left, left + _CHUNK)
                kept = ~shared[None, part]
                _add(sums, np.where(kept, a[None, part], 0.0), np.where(kept, b[None, part], 0.0))
    return fine_fp32 and fine, fine_fp32


def _dot(a: Floats, b: Floats) -> Floats:
    products: Floats = np.einsum("ij,ij->i", a, b)
    return products
