"""Coefficient of determination (r2): the candidate must be better than two trivial predictions.

A candidate that always returns 300 has an SQNR of 30 dB on temperatures of 300 +- 10 K, and a denoiser's candidate that
copies its input has a similar one. The candidate's error is therefore compared with the errors of two trivial
predictions: the mean over all samples, and the input of the same shape. This is the skill score of forecasts with
"climatology" and "persistence" as references (Murphy 1988, Monthly Weather Review 116:2417).

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.outputs import Floats, are_probabilities, is_float
from trtopt.compare.measures.parts import HARMLESS

POSITIONS = 1024
"""Number of evenly spaced values per output that are used, so that memory does not grow with its size."""

ENOUGH = 2
"""Least number of samples for their mean to be a prediction."""

COLUMNS = 8
"""A vector of up to so many numbers is a list of quantities, each of which must be explained."""

NOTHING = 1e-10
"""Fraction of the signal energy below which a prediction is exact: the output is constant, or a copy, by design."""

_Array = npt.NDArray[np.generic]


class Explained:
    """Accumulator of an output's variation over samples and of the candidate's error, at some positions."""

    def __init__(self) -> None:
        self._samples = 0
        self._shape: tuple[int, ...] | None = None
        self._equal_shapes = True
        # Per position, sums over samples of x^2, d, d^2 (d = x - first sample) and the candidate's squared error.
        self._first: Floats = np.zeros(0)
        self._sums: Floats = np.zeros((4, 0))
        # The same over all positions, with d = x - first value, for samples of different shapes; and their number.
        self._totals: Floats = np.zeros(4)
        self._values = 0
        # Squared errors of the inputs that could be copied.
        self._copies: dict[str, float] = {}
        self._largest = 0.0
        self._probabilities = True

    def add(self, reference: _Array, candidate: _Array, inputs: Mapping[str, _Array]) -> None:
        """Add one sample without NaN or Inf; `inputs` are the model's inputs for it, by name."""
        if not reference.size:
            return
        x, y = _followed(reference), _followed(candidate)
        if self._shape is None:
            self._shape, self._first = reference.shape, x
            self._sums = np.zeros((4, len(x)))
            self._copies = dict.fromkeys(inputs, 0.0)
        self._equal_shapes = self._equal_shapes and reference.shape == self._shape
        with np.errstate(over="ignore", invalid="ignore"):
            if self._equal_shapes:
                d = x - self._first
                self._sums += np.stack([x * x, d, d * d, (x - y) ** 2])
            d = x - self._first[0]
            self._totals += np.stack([x * x, d, d * d, (x - y) ** 2]).sum(axis=1)
            for name in list(self._copies):
                if name not in inputs or not _alike(inputs[name], reference):
                    del self._copies[name]
                else:
                    self._copies[name] += float(((x - _followed(inputs[name])) ** 2).sum())
        self._values += len(x)
        self._samples += 1
        self._largest = max(self._largest, float(np.abs(x - y).max()))
        self._probabilities = self._probabilities and are_probabilities(x)

    @property
    def harmless(self) -> bool:
        """Whether the outputs are probabilities whose errors nobody acts on."""
        return self._probabilities and self._largest < HARMLESS

    def r2(self) -> float | None:
        """Return 1 - error / (error of the best trivial prediction) over all samples.

        A vector of few numbers has that of its worst number. It is None if no prediction is meaningful.
        """
        signal, d, d2, error = self._totals.tolist()
        if not np.isfinite(signal + error):
            return None
        predictions = list(self._copies.values())
        explained: list[float] = []
        if self._samples >= ENOUGH:
            if self._equal_shapes:
                spreads = np.maximum(self._sums[2] - self._sums[1] ** 2 / self._samples, 0.0)
                predictions.append(float(spreads.sum()))
                if len(self._shape or ()) <= 1 and len(spreads) <= COLUMNS:
                    varying = spreads > NOTHING * self._sums[0]
                    explained += (1.0 - self._sums[3][varying] / spreads[varying]).tolist()
            else:
                predictions.append(d2 - d * d / self._values)
        predictions = [squared for squared in predictions if squared > NOTHING * signal]
        explained += [1.0 - error / min(predictions)] if predictions else []
        return min(explained) if explained else None


def _alike(array: _Array, output: _Array) -> bool:
    """Return whether the output could be a copy of this input."""
    return is_float(array) and array.size == output.size and array.shape[-1:] == output.shape[-1:]


def _followed(array: _Array) -> Floats:
    """Return at most `POSITIONS` evenly spaced values as float64."""
    flat = array.reshape(-1)
    if flat.size <= POSITIONS:
        return flat.astype(np.float64)
    return flat[np.linspace(0, flat.size - 1, POSITIONS).astype(np.intp)].astype(np.float64)
