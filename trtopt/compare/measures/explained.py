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

ENOUGH = 8
"""Least number of samples for their mean to be a meaningful prediction."""

NOTHING = 1e-6
"""Fraction of the signal energy below which a prediction is exact: the output is constant, or a copy, by design."""

_Array = npt.NDArray[np.generic]


class Explained:
    """Accumulator of an output's variation over samples and of the candidate's error, at some positions."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._possible = True
        self._samples = 0
        # Per position: the first sample, and five sums over samples. With d = x - first sample they are the sums of
        # x^2, d, d^2, and of the squared errors of the candidate and of the copied input.
        self._first: Floats = np.zeros(0)
        self._sums: Floats = np.zeros((5, 0))
        self._copied: str | None = None
        self._largest = 0.0
        self._probabilities = True

    def add(self, reference: _Array, candidate: _Array, inputs: Mapping[str, _Array]) -> None:
        """Add one sample without NaN or Inf; `inputs` are the model's inputs for it, by name."""
        if self._size is None:
            self._size = reference.size
            self._copied = next((name for name in inputs if _alike(inputs[name], reference)), None)
            self._first = _followed(reference)
            self._sums = np.zeros((5, len(self._first)))
        self._possible = self._possible and reference.size == self._size
        if not self._possible or not reference.size:
            return
        x, y = _followed(reference), _followed(candidate)
        copied = inputs.get(self._copied or "")
        copy = _followed(copied) if copied is not None and _alike(copied, reference) else np.full_like(x, np.inf)
        centred = x - self._first
        with np.errstate(over="ignore", invalid="ignore"):
            self._sums += np.stack([x * x, centred, centred * centred, (x - y) ** 2, (x - copy) ** 2])
        self._samples += 1
        self._largest = max(self._largest, float(np.abs(x - y).max()))
        self._probabilities = self._probabilities and are_probabilities(x)

    def r2(self) -> float | None:
        """Return 1 - error / (error of the better trivial prediction) over all samples.

        It is None if neither prediction is meaningful, or if the outputs are probabilities with harmless errors.
        """
        if not self._possible or not self._samples or not self._sums.size:
            return None
        signal, _, _, error, copied = self._sums.sum(axis=1).tolist()
        spread = float((self._sums[2] - self._sums[1] ** 2 / self._samples).sum())
        predictions: list[float] = []
        if np.isfinite(copied):
            predictions.append(copied)
        if self._samples >= ENOUGH:
            predictions.append(spread)
        predictions = [squared for squared in predictions if squared > NOTHING * signal]
        if not predictions or not np.isfinite(signal + error):
            return None
        if self._probabilities and self._largest < HARMLESS:
            return None
        return 1.0 - float(error) / min(predictions)


def _alike(array: _Array, output: _Array) -> bool:
    """Return whether the output could be a copy of this input."""
    return is_float(array) and array.size == output.size and array.shape[-1:] == output.shape[-1:]


def _followed(array: _Array) -> Floats:
    """Return at most `POSITIONS` evenly spaced values as float64."""
    flat = array.reshape(-1)
    if flat.size <= POSITIONS:
        return flat.astype(np.float64)
    return flat[np.linspace(0, flat.size - 1, POSITIONS).astype(np.intp)].astype(np.float64)
