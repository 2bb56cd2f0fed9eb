"""The outputs of both models for some samples, and what every kind that compares value by value needs of them.

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

_CHUNK = 1 << 15
"""Values of a row that are converted to float64 at once: they fit a processor's cache."""

_BUFFER = 1 << 13
"""Values that numpy takes together without a cut (`numpy.getbufsize`)."""

_FIX = "Compare a model with what was made from it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One output of both models, a row a sample: `x` is FP32's, `y` the candidate's, both as the models gave them.

    The float64 arrays hold one number a sample: `signal` is the sum of x^2, `error` of (x - y)^2, `absolute` of
    |x - y|, `product` of x y, `energy` of y^2, and `largest` is the largest |x - y|. `finite` says whether a sample has
    neither NaN nor Inf in both models, `finite_fp32` whether it has none in FP32.
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
    finite: npt.NDArray[np.bool_]
    finite_fp32: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The outputs of both models by name, for the samples at `indices` of the dataset, with their class `labels`.

    With more than one sample, the first axis of every output is the samples'.
    """

    reference: Mapping[str, Array]
    candidate: Mapping[str, Array]
    indices: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    _rows: dict[str, Rows] = field(default_factory=dict, repr=False)

    def both(self, name: str) -> tuple[Array, Array]:
        """FP32's output and the candidate's, of the same shape and alike in type.

        Raises:
            ModelError: the shapes differ, one is of integers and the other is not, or the first axis is no batch.
        """
        reference, candidate = self.reference[name], self.candidate[name]
        if reference.shape != candidate.shape:
            raise ModelError(
                f"output {name} has another shape in the candidate",
                why=f"{list(reference.shape)} in FP32, {list(candidate.shape)} in the candidate",
                fix=_FIX,
            )
        if is_float(reference) != is_float(candidate):
            raise ModelError(
                f"output {name} has another type in the candidate",
                why=f"{reference.dtype.name} in FP32, {candidate.dtype.name} in the candidate",
                fix=_FIX,
            )
        if len(self.indices) != 1 and reference.shape[:1] != (len(self.indices),):
            raise ModelError(
                f"output {name} has no row for each sample",
                why=f"its shape is {list(reference.shape)} for {len(self.indices)} samples",
                fix="Run the samples one by one",
            )
        return reference, candidate

    def rows(self, name: str) -> Rows:
        """The output as rows; computed once, however many readers ask.

        Raises:
            ModelError: see `both`.
        """
        if name not in self._rows:
            reference, candidate = self.both(name)
            count = len(self.indices)
            # The width is said, not -1: numpy cannot tell it where an output is empty.
            width = reference.size // count
            self._rows[name] = _measured(reference.reshape(count, width), candidate.reshape(count, width), self.indices)
        return self._rows[name]


def is_float(array: Array) -> bool:
    """Whether an array is of floating-point numbers; numpy does not count ml_dtypes' bfloat16 among them."""
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"


def joined(batches: Sequence[Outputs]) -> Outputs:
    """Batches whose outputs all have the samples on the first axis and the same shape after it, as one."""
    if len(batches) == 1:
        return batches[0]
    return Outputs(
        reference={name: np.concatenate([each.reference[name] for each in batches]) for name in batches[0].reference},
        candidate={name: np.concatenate([each.candidate[name] for each in batches]) for name in batches[0].candidate},
        indices=tuple(index for each in batches for index in each.indices),
        labels=None if batches[0].labels is None else tuple(label for each in batches for label in each.labels or ()),
    )


def _measured(x: Array, y: Array, indices: tuple[int, ...]) -> Rows:
    """Measure in float64, a piece at a time. A row is always cut at the same places, whatever stands beside it, so that
    its numbers do not depend on the batch to the last bit: rows are taken together only where all of them fit numpy's
    buffer, for at its end numpy starts another sum.
    """
    count, width = x.shape
    signal, error, absolute, product, energy, largest = np.zeros((6, count))
    step = max(1, _BUFFER // max(width, 1))
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes NaN, and NaN fails every gate
        for top in range(0, count, step):
            at = slice(top, top + step)
            for left in range(0, width, _CHUNK):
                a = x[at, left : left + _CHUNK].astype(np.float64)
                b = y[at, left : left + _CHUNK].astype(np.float64)
                signal[at] += _dot(a, a)
                product[at] += _dot(a, b)
                energy[at] += _dot(b, b)
                np.abs(np.subtract(a, b, out=a), out=a)
                error[at] += _dot(a, a)
                absolute[at] += a.sum(axis=1)
                np.maximum(largest[at], a.max(axis=1), out=largest[at])
    finite_fp32 = _finite(x, signal)
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
        finite=finite_fp32 & _finite(y, energy),
        finite_fp32=finite_fp32,
    )


def _dot(a: Floats, b: Floats) -> Floats:
    found: Floats = np.einsum("ij,ij->i", a, b)
    return found


def _finite(rows: Array, squares: Floats) -> npt.NDArray[np.bool_]:
    """Which rows have neither NaN nor Inf: all whose squares have a finite sum, and those whose squares overflow."""
    found = np.isfinite(squares)
    for i in np.flatnonzero(~found):
        found[i] = np.isfinite(rows[i].astype(np.float64)).all()
    return found
