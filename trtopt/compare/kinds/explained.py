"""How much of what varies the candidate explains: it must know more than two guesses that look at nothing.

A candidate that always says 300 has an SQNR of 30 dB against temperatures of 300 +- 10 K, and one that copies its input
has as much against a denoiser. The error is therefore also compared with the errors of these two guesses, the mean over
the samples and the input of the same shape, as a coefficient of determination. (It is the skill score of forecasts with
"climatology" and "persistence" as the references: Murphy 1988, Monthly Weather Review 116:2417.)

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trtopt.compare.kinds.outputs import Floats, are_probabilities, is_float
from trtopt.compare.kinds.parts import HARMLESS

POSITIONS = 1024
"""Values of an output that are followed, evenly spread: memory does not grow with its size."""

ENOUGH = 8
"""Samples below which their mean is no guess that a network could have learnt."""

NOTHING = 1e-6
"""Share of the signal energy below which nothing varies: an output that is constant, or a copy, by design."""

_Array = npt.NDArray[np.generic]


class Explained:
    """Accumulates, for some positions of an output, its variation over samples and the candidate's error."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._possible = True
        self._samples = 0
        # Per position: the first sample, then sums over samples of x^2, of x and x^2 less the first sample, and of the
        # squared errors of the candidate and of the copied input.
        self._first: Floats = np.zeros(0)
        self._sums: Floats = np.zeros((5, 0))
        self._copied: str | None = None
        self._largest = 0.0
        self._probabilities = True

    def add(self, reference: _Array, candidate: _Array, inputs: Mapping[str, _Array]) -> None:
        """Add one sample, free of NaN and Inf; `inputs` are the model's inputs for it, by name."""
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
        """Return 1 - error / error of the better guess, over all samples; None where no guess is worth a comparison."""
        if not self._possible or not self._samples or not self._sums.size:
            return None
        signal, _, _, error, copied = self._sums.sum(axis=1).tolist()
        spread = float((self._sums[2] - self._sums[1] ** 2 / self._samples).sum())
        guesses: list[float] = [copied] if np.isfinite(copied) else []
        guesses += [spread] if self._samples >= ENOUGH else []
        guesses = [guess for guess in guesses if guess > NOTHING * signal]
        if not guesses or not np.isfinite(signal + error):
            return None
        if self._probabilities and self._largest < HARMLESS:
            return None
        return 1.0 - float(error) / min(guesses)


def _alike(array: _Array, output: _Array) -> bool:
    return is_float(array) and array.size == output.size and array.shape[-1:] == output.shape[-1:]


def _followed(array: _Array) -> Floats:
    """Return at most `POSITIONS` values, evenly spread, as float64."""
    flat = array.reshape(-1)
    if flat.size <= POSITIONS:
        return flat.astype(np.float64)
    return flat[np.linspace(0, flat.size - 1, POSITIONS).astype(np.intp)].astype(np.float64)
