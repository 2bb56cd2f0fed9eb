"""By how much to divide each channel of an activation: the divisors with the least error at the outputs of its readers.

With divisors s, a reader gets Q(x / s) and Q(s w) in place of x and w. Channel by channel, in the units of x and w, the
first errs by x - s Q(x / s), which the reader multiplies by its weights; the second by w - Q(s w) / s, which is
multiplied by the activation. To second order, and taking errors as independent, the squared error at the outputs is

    sum over c of  |w_c|**2 E[(x_c - s_c Q(x_c / s_c))**2]  +  E[x_c**2] |w_c - Q(s_c w_c) / s_c|**2

Both expectations are taken over values that were seen. Tried are s_c = r_c**a / v_c**(1 - a), with the range r of the
channel and the largest weight v that reads it, for several a: SmoothQuant's form (Xiao et al. 2023), whose a is one
number for a whole network; here each activation has its own, and none at all if that is best.

The sum knows nothing of what later layers make of an error. Which of `WAYS` suits a network is for its outputs to say.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.ranges import Channels

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

WAYS = ((0.5,), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
"""The exponents to choose from: the difficulty shared evenly between activations and weights, or as it fits each."""
CLIPPED = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3)
"""Scales that the calibrator may choose, as shares of the one that clips nothing."""
MAX_RATIO = 32.0
"""No channel is stretched by more than this against the widest one: one that was silent in the few samples may speak
later, and what goes beyond the range is clipped for all. Five of the eight bits are what there is to gain."""
LEVELS = 127.0
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Choice:
    """`divisors` of each channel, float64 [channels]; the largest magnitude of the activation stays as it was.

    `error` is the squared error that is left, as a share of that without division.
    """

    divisors: Array
    error: float


def choose(seen: Channels, weights: Sequence[Floats], exponents: Sequence[float]) -> Choice | None:
    """The best divisors of one activation; None when its channels are best left alone, or were never alive.

    `weights` are those of its readers, each float32 [groups, outputs / groups, channels / groups, taps].
    """
    peaks = seen.peaks
    if not np.isfinite(peaks).all() or not peaks.max() or not all(weight.any() for weight in weights):
        return None
    reading: Array = np.max(
        [np.abs(weight).max(axis=(1, 3)).reshape(-1).astype(np.float64) for weight in weights], axis=0
    )
    ranges = np.maximum(peaks, peaks.max() / MAX_RATIO)
    reading = np.maximum(reading, reading.max() / MAX_RATIO)
    plain = squared_error(seen, weights, np.ones_like(peaks))
    best = None
    for exponent in exponents:
        divisors = ranges**exponent / reading ** (1 - exponent)
        divisors *= (peaks / divisors).max() / peaks.max()
        error = squared_error(seen, weights, divisors) / max(plain, float(TINY))
        if error < (best.error if best else 1.0):
            best = Choice(divisors, float(error))
    return best


def squared_error(seen: Channels, weights: Sequence[Floats], divisors: Array) -> float:
    """The predicted squared error at the outputs of all readers, for one position of the activation."""
    values = np.asarray(seen.values / divisors[:, None], np.float32)
    widest = float((seen.peaks / divisors).max()) / LEVELS
    tried = [np.square(_rounded(values, widest * share) - values, dtype=np.float64).mean(axis=1) for share in CLIPPED]
    # As the calibrator does, which sees the divided activation and no weights.
    lost = min(tried, key=lambda errors: float(errors.sum())) * divisors**2
    # The largest value is rarely among those kept: it counts once.
    power = np.square(seen.values, dtype=np.float64).mean(axis=1) + np.square(seen.peaks) / seen.values.shape[1]
    total = 0.0
    for weight in weights:
        shape = (weight.shape[0], weight.shape[2])
        stretched = weight * divisors.astype(np.float32).reshape(shape[0], 1, shape[1], 1)
        scales = np.maximum(np.abs(stretched).max(axis=(2, 3), keepdims=True) / np.float32(LEVELS), TINY)
        # Per channel first: it is only there that the two sums differ in what they are multiplied by.
        errors = _energy(_rounded(stretched, scales) - stretched) / np.square(divisors).reshape(shape)
        total += float((_energy(weight) * lost.reshape(shape) + errors * power.reshape(shape)).sum())
    return total


def _energy(weight: Floats) -> Array:
    """Sum of squares over outputs and taps: [groups, channels / groups]."""
    return np.asarray(np.einsum("goct,goct->gc", weight, weight, dtype=np.float64))


def _rounded(values: Floats, scales: Floats | float) -> Floats:
    codes = np.asarray(values / np.asarray(scales, np.float32), np.float32)
    np.rint(codes, out=codes)
    np.clip(codes, -LEVELS, LEVELS, out=codes)
    codes *= np.asarray(scales, np.float32)
    return codes
