"""Smoothing scales: the factor by which to divide each channel of an activation before it is quantized.

With smoothing scales s, a consumer reads Q(x / s) and Q(s w) in place of x and w. In the units of x and w, the error of
channel c is
    activation:  x - s Q(x / s), which the consumer multiplies by its weights
    weight:      w - Q(s w) / s, which is multiplied by the activation
To second order, and with independent errors, the squared error at the consumers' outputs is

    sum over c of  |w_c|**2 E[(x_c - s_c Q(x_c / s_c))**2]  +  E[x_c**2] |w_c - Q(s_c w_c) / s_c|**2

with both expectations taken over observed values. The candidates are those of SmoothQuant (Xiao et al. 2023),
s_c = r_c**alpha / v_c**(1 - alpha), where r_c is the absmax of the channel, v_c the absmax of the weights that read it,
and alpha the migration strength. SmoothQuant has one alpha for the whole network. Here each activation has the one with
the least predicted error, or is not smoothed if that is better.

The prediction ignores the effect of an error on later layers. Which of `WAYS` suits a network is decided by a trial
elsewhere, by the output SQNR.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.ranges import Channels
from trtopt.formats import INT8, Format

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

WAYS = ((0.5,), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
"""The sets of alphas to choose from: 0.5 for every activation, or the best of several for each."""
CLIPPED = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3)
"""Quantization scales that a calibrator may choose for the activation, as fractions of the one that clips nothing."""
MAX_RATIO = 32.0
"""The largest ratio between the smoothing scales of two channels.

A channel that is silent in the observed samples may be active in others, and its values beyond the common range would
be clipped. A ratio of 32 gains up to five of the eight bits.
"""
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Choice:
    """The smoothing scales of an activation, float64 [channels], which leave the absmax of the whole tensor unchanged.

    `error` is the predicted squared error, as a fraction of that without smoothing.
    """

    scales: Array
    error: float


def choose(
    channels: Channels, weights: Sequence[Floats], alphas: Sequence[float], format: Format = INT8
) -> Choice | None:
    """Return the smoothing scales with the least predicted error.

    Args:
        channels: the observed values of the activation.
        weights: those of its consumers, each float32 [groups, outputs / groups, channels / groups, taps].
        alphas: the migration strengths to try.
        format: the 8-bit type.

    Returns:
        None if no candidate reduces the error, or if the activation or a weight is all zero or not finite.
    """
    absmax = channels.peaks
    if not np.isfinite(absmax).all() or not absmax.max() or not all(weight.any() for weight in weights):
        return None
    weight_absmax: Array = np.max(
        [np.abs(weight).max(axis=(1, 3)).reshape(-1).astype(np.float64) for weight in weights], axis=0
    )
    # Bound both ranges from below, so that a silent channel is not stretched without limit.
    activation_range = np.maximum(absmax, absmax.max() / MAX_RATIO)
    weight_range = np.maximum(weight_absmax, weight_absmax.max() / MAX_RATIO)
    plain_error = squared_error(channels, weights, np.ones_like(absmax), format)
    best = None
    for alpha in alphas:
        scales = activation_range**alpha / weight_range ** (1 - alpha)
        scales *= (absmax / scales).max() / absmax.max()  # the absmax of the tensor stays the same
        error = squared_error(channels, weights, scales, format) / max(plain_error, float(TINY))
        if error < (best.error if best else 1.0):
            best = Choice(scales, float(error))
    return best


def squared_error(channels: Channels, weights: Sequence[Floats], scales: Array, format: Format = INT8) -> float:
    """Return the predicted squared error at the outputs of all consumers, per position of the activation.

    Args:
        channels: the observed values of the activation.
        weights: those of its consumers, as in `choose`.
        scales: the smoothing scales, float64 [channels].
        format: the 8-bit type.
    """
    smoothed = np.asarray(channels.values / scales[:, None], np.float32)
    unclipped = float((channels.peaks / scales).max()) / format.max
    # The calibrator sees the smoothed activation and no weights: it takes the quantization scale with the least error.
    channel_errors = [
        np.square(_rounded(smoothed, unclipped * fraction, format) - smoothed, dtype=np.float64).mean(axis=1)
        for fraction in CLIPPED
    ]
    activation_error = min(channel_errors, key=lambda errors: float(errors.sum())) * scales**2
    # E[x**2]. The absmax is rarely among the values kept from the samples, so it is added as one more.
    power = np.square(channels.values, dtype=np.float64).mean(axis=1)
    power += np.square(channels.peaks) / channels.values.shape[1]
    total = 0.0
    for weight in weights:
        shape = (weight.shape[0], weight.shape[2])  # [groups, channels / groups]
        scaled = weight * scales.astype(np.float32).reshape(shape[0], 1, shape[1], 1)
        # Weights have one quantization scale per output, or one per tensor.
        within = (2, 3) if format.per_channel else None
        steps = np.maximum(np.abs(scaled).max(axis=within, keepdims=True) / np.float32(format.max), TINY)
        # Sum over outputs first: the factors of the two terms differ between channels only.
        weight_error = _energy(_rounded(scaled, steps, format) - scaled) / np.square(scales).reshape(shape)
        total += float((_energy(weight) * activation_error.reshape(shape) + weight_error * power.reshape(shape)).sum())
    return total


def _energy(weight: Floats) -> Array:
    """Return the sum of squares over outputs and taps, float64 [groups, channels / groups]."""
    return np.asarray(np.einsum("goct,goct->gc", weight, weight, dtype=np.float64))


def _rounded(values: Floats, steps: Floats | float, format: Format) -> Floats:
    """Return the values quantized with `steps`, the quantization scales, and dequantized."""
    codes = np.asarray(values / np.asarray(steps, np.float32), np.float32)
    np.clip(codes, -format.max, format.max, out=codes)
    if format.numpy.kind == "i":
        np.rint(codes, out=codes)
    else:
        codes = codes.astype(format.numpy).astype(np.float32)
    codes *= np.asarray(steps, np.float32)
    return codes
