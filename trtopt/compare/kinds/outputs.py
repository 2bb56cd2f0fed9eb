"""Outputs of both models for a batch of samples, and the sums that all value-by-value comparisons share.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trtopt.errors import ModelError

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TOLERANCE = 1e-3
"""How far a probability may lie outside [0, 1], and a sum of probabilities from 1, by rounding.

A sigmoid in float32 gives 1.0000001 now and then, and a baseline in 16 bits is off by more.
"""

_CHUNK = 1 << 15
"""Values of a row that are converted to float64 at once: they fit a processor's cache."""

_BUFFER = 1 << 13
"""Values that numpy sums without starting anew (`numpy.getbufsize`)."""

_FIX = "Compare a model with what was made from it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One output of both models, one row per sample: `x` is FP32's, `y` the candidate's, as the models returned them.

    The float64 arrays hold one number per sample: `signal` is the sum of x^2, `error` of (x - y)^2, `absolute` of
    |x - y|, `product` of x y, `energy` of y^2, and `largest` is the largest |x - y|. An infinity that both models have
    in the same place counts as equal: it adds nothing to any sum. `comparable` is false for a sample with a NaN, or
    with an infinity that only one model has; `comparable_fp32` is false where FP32 is the model that has it.
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

    With more than one sample, the first axis of every output is the sample axis. `inputs` is what the models were fed,
    by input name; it is empty where nobody needs it.
    """

    reference: Mapping[str, Array]
    candidate: Mapping[str, Array]
    indices: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    inputs: Mapping[str, Array] = field(default_factory=dict)
    _rows: dict[str, Rows] = field(default_factory=dict, repr=False)

    def both(self, name: str) -> tuple[Array, Array]:
        """Return FP32's output and the candidate's, of the same shape and both floating-point or both not.

        Raises:
            ModelError: the shapes differ, only one is of a floating-point type, or the first axis is not the batch.
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
                f"output {name} has no row for each sample",
                why=f"its shape is {list(reference.shape)} for {len(self.indices)} samples",
                fix="Run the samples one by one",
            )
        return reference, candidate

    def differs_in_rows(self, name: str) -> bool:
        """Return whether both models gave the same kind of rows, but not the same number of them.

        That is what an output does whose length depends on the data, such as the boxes that are left after
        non-maximum suppression. The rows are the first axis of a sample that is fed alone, `[k, ...]`, or the second
        axis of `[n, k, width]`. Any other difference in shape is an error of the candidate.

        Raises:
            ModelError: only one of the two is of a floating-point type.
        """
        reference, candidate = self.reference[name].shape, self.candidate[name].shape
        if len(reference) != len(candidate) or reference == candidate:
            return False
        self._check_type(name)
        alone = len(self.indices) == 1
        differing = [axis for axis, sizes in enumerate(zip(reference, candidate, strict=True)) if len(set(sizes)) > 1]
        return (differing == [0] and alone) or (differing == [1] and len(reference) == 3)

    def rows(self, name: str) -> Rows:
        """Return the output as rows; computed once, however many readers ask.

        Raises:
            ModelError: see `both`.
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


def is_float(array: Array) -> bool:
    """Return whether the array is of a floating-point type; numpy does not count ml_dtypes' bfloat16 as one."""
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"


def are_probabilities(values: Array) -> bool:
    """Return whether all values lie in [0, 1], up to what the rounding of a sigmoid or a softmax adds."""
    return not values.size or (float(values.min()) >= -TOLERANCE and float(values.max()) <= 1 + TOLERANCE)


def joined(batches: Sequence[Outputs]) -> Outputs:
    """Return as one batch several whose outputs have the samples on the first axis and equal shapes after it."""
    if len(batches) == 1:
        return batches[0]
    return Outputs(
        reference={name: np.concatenate([each.reference[name] for each in batches]) for name in batches[0].reference},
        candidate={name: np.concatenate([each.candidate[name] for each in batches]) for name in batches[0].candidate},
        inputs={name: np.concatenate([each.inputs[name] for each in batches]) for name in batches[0].inputs},
        indices=tuple(index for each in batches for index in each.indices),
        labels=None if batches[0].labels is None else tuple(label for each in batches for label in each.labels or ()),
    )


def _measured(x: Array, y: Array, indices: tuple[int, ...]) -> Rows:
    """Measure in float64, in chunks.

    A row is always cut at the same places, whatever the batch, so that its numbers do not depend on the batch to the
    last bit. Rows are taken together only where all of them fit numpy's buffer: at its end numpy starts a new sum.
    """
    count, width = x.shape
    sums = np.zeros((6, count))
    step = max(1, _BUFFER // max(width, 1))
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes NaN, and NaN fails every gate
        for top in range(0, count, step):
            at = slice(top, top + step)
            for left in range(0, width, _CHUNK):
                part = slice(left, left + _CHUNK)
                _add(sums[:, at], x[at, part].astype(np.float64), y[at, part].astype(np.float64))
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
    """Add the values of some rows [rows, n] to their sums [6, rows], in the order of `Rows`; `a` is overwritten."""
    signal, error, absolute, product, energy, largest = sums
    signal += _dot(a, a)
    product += _dot(a, b)
    energy += _dot(b, b)
    np.abs(np.subtract(a, b, out=a), out=a)
    error += _dot(a, a)
    absolute += a.sum(axis=1)
    np.maximum(largest, a.max(axis=1), out=largest)


def _remeasured(sums: Floats, x: Array, y: Array) -> tuple[bool, bool]:
    """Measure one row again without the infinities that both models share, or after its squares overflowed.

    Return whether the models can be compared on it, and whether FP32 alone would let them.
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
