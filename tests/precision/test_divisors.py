"""Smoothing scales: the predicted error is the measured one, and a choice is never worse than no smoothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.calibrate.ranges import Channels
from trtopt.formats import INT8
from trtopt.precision.passes.smoothing import MAX_RATIO, WAYS, choose, squared_error


def activation(seed: int, spread: float, channels: int = 24, values: int = 4000) -> Channels:
    """Return uncorrelated channels, whose ranges differ by up to a factor of `spread`."""
    random = np.random.default_rng(seed)
    rows = random.laplace(size=(channels, values)) * np.geomspace(1, spread, channels)[:, None]
    rows = rows.astype(np.float32)
    return Channels(np.abs(rows).max(axis=1).astype(np.float64), rows)


def quantized(x: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return np.asarray(np.clip(np.rint(x / scale), -INT8.max, INT8.max) * scale)


def measured_error(channels: Channels, weight: np.ndarray, scales: np.ndarray) -> float:
    """Return the mean squared error of a matrix product, summed over its outputs.

    The activation has the best of many quantization scales, the weight one per output.
    """
    x, w = channels.values / scales[:, None], weight * scales
    w = quantized(w, np.abs(w).max(axis=1, keepdims=True) / INT8.max)
    candidates = np.abs(x).max() / INT8.max * np.linspace(0.2, 1, 33)
    best = min(candidates, key=lambda scale: float(np.square(quantized(x, scale) - x).sum()))
    return float(np.square(w @ quantized(x, best) - weight @ channels.values).mean(axis=1).sum())


@pytest.mark.parametrize("spread", [1.0, 10.0, 300.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_predicted_error_is_that_of_the_quantized_product(spread: float, alpha: float) -> None:
    channels, weight = activation(0, spread), np.random.default_rng(1).normal(size=(32, 24))
    scales = channels.peaks**alpha
    predicted = squared_error(channels, [weight[None, :, :, None]], scales)
    assert predicted == pytest.approx(measured_error(channels, weight, scales), rel=0.15)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(1, 1e4), st.floats(1, 1e4))
def test_a_choice_is_better_than_none_and_bounded(seed: int, spread: float, weight_spread: float) -> None:
    channels = activation(seed, spread, values=200)
    random = np.random.default_rng(seed)
    weight = random.normal(size=(32, 24)) * random.permutation(np.geomspace(1, weight_spread, 24))
    grouped = weight[None, :, :, None]
    choice = choose(channels, [grouped], WAYS[-1])
    if choice is None:
        return
    assert choice.error < 1
    plain = squared_error(channels, [grouped], np.ones(24))
    assert squared_error(channels, [grouped], choice.scales) == pytest.approx(choice.error * plain)
    assert choice.scales.max() / choice.scales.min() <= MAX_RATIO * 1.0001
    assert (channels.peaks / choice.scales).max() == pytest.approx(channels.peaks.max())


def test_channels_of_very_different_ranges_are_smoothed() -> None:
    choice = choose(activation(0, 30.0), [np.random.default_rng(1).normal(size=(1, 32, 24, 1))], WAYS[-1])
    assert choice is not None
    assert choice.error < 0.5


def test_a_silent_channel_is_stretched_by_a_bounded_factor() -> None:
    channels = activation(0, 3.0)
    channels.values[5] = 0
    channels.peaks[5] = 0
    choice = choose(channels, [np.random.default_rng(1).normal(size=(1, 32, 24, 1))], WAYS[-1])
    assert choice is not None
    assert np.isfinite(choice.scales).all()
    assert choice.scales[5] >= choice.scales.max() / MAX_RATIO / 1.0001


def test_the_weights_of_all_consumers_count() -> None:
    channels, random = activation(0, 30.0), np.random.default_rng(1)
    one, two = random.normal(size=(1, 32, 24, 1)), random.normal(size=(1, 8, 24, 1)) * 100
    both = squared_error(channels, [one, two], np.ones(24))
    separately = [squared_error(channels, [weight], np.ones(24)) for weight in (one, two)]
    assert both == pytest.approx(sum(separately))


@pytest.mark.parametrize("absmax", [np.zeros(24), np.full(24, np.inf), np.full(24, np.nan)])
def test_channels_that_are_all_zero_or_not_finite_are_not_smoothed(absmax: np.ndarray) -> None:
    assert choose(Channels(absmax, np.zeros((24, 8), np.float32)), [np.ones((1, 32, 24, 1))], WAYS[-1]) is None


def test_an_activation_whose_weights_are_all_zero_is_not_smoothed() -> None:
    assert choose(activation(0, 30.0), [np.zeros((1, 32, 24, 1))], WAYS[-1]) is None


def test_magnitudes_whose_squares_leave_fp32_are_chosen_for_as_any() -> None:
    seen, weight = activation(0, 300.0), np.random.default_rng(1).normal(size=(32, 24)).astype(np.float32)
    scaled = Channels(seen.peaks * 1e30, seen.values * np.float32(1e30))
    plain, found = (choose(each, [weight[None, :, :, None]], (0.5,)) for each in (seen, scaled))
    assert plain is not None
    assert found is not None
    assert found.error == pytest.approx(plain.error, rel=1e-3)
