"""Divisors of channels: the predicted error is what quantization does, and the choice is never worse than none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.calibrate.ranges import Channels
from trtopt.precision.divisors import LEVELS, MAX_RATIO, WAYS, choose, squared_error


def activation(seed: int, spread: float, channels: int = 24, values: int = 4000) -> Channels:
    """Channels without correlation, whose ranges differ by up to `spread`."""
    random = np.random.default_rng(seed)
    rows = random.laplace(size=(channels, values)) * np.geomspace(1, spread, channels)[:, None]
    rows = rows.astype(np.float32)
    return Channels(np.abs(rows).max(axis=1).astype(np.float64), rows)


def quantized(x: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return np.asarray(np.clip(np.rint(x / scale), -LEVELS, LEVELS) * scale)


def real_error(seen: Channels, weight: np.ndarray, divisors: np.ndarray) -> float:
    """Mean squared error of a matrix product, summed over its outputs, with the best of many scales of `x`."""
    x, w = seen.values / divisors[:, None], weight * divisors
    w = quantized(w, np.abs(w).max(axis=1, keepdims=True) / LEVELS)
    scales = np.abs(x).max() / LEVELS * np.linspace(0.2, 1, 33)
    scale = min(scales, key=lambda scale: float(np.square(quantized(x, scale) - x).sum()))
    return float(np.square(w @ quantized(x, scale) - weight @ seen.values).mean(axis=1).sum())


@pytest.mark.parametrize("spread", [1.0, 10.0, 300.0])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_predicted_error_is_that_of_the_quantized_product(spread: float, exponent: float) -> None:
    seen, weight = activation(0, spread), np.random.default_rng(1).normal(size=(32, 24))
    divisors = seen.peaks**exponent
    predicted = squared_error(seen, [weight[None, :, :, None]], divisors)
    assert predicted == pytest.approx(real_error(seen, weight, divisors), rel=0.15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 1e4), st.floats(1, 1e4))
def test_the_choice_is_better_than_none_and_bounded(seed: int, spread: float, unlike: float) -> None:
    seen = activation(seed, spread, values=200)
    random = np.random.default_rng(seed)
    weight = random.normal(size=(32, 24)) * random.permutation(np.geomspace(1, unlike, 24))
    grouped = weight[None, :, :, None]
    choice = choose(seen, [grouped], WAYS[-1])
    if choice is None:
        return
    assert choice.error < 1
    plain = squared_error(seen, [grouped], np.ones(24))
    assert squared_error(seen, [grouped], choice.divisors) == pytest.approx(choice.error * plain)
    assert choice.divisors.max() / choice.divisors.min() <= MAX_RATIO * 1.0001
    assert (seen.peaks / choice.divisors).max() == pytest.approx(seen.peaks.max())


def test_channels_that_differ_by_much_are_worth_dividing() -> None:
    choice = choose(activation(0, 30.0), [np.random.default_rng(1).normal(size=(1, 32, 24, 1))], WAYS[-1])
    assert choice is not None
    assert choice.error < 0.5


def test_a_silent_channel_is_stretched_by_a_bounded_factor() -> None:
    seen = activation(0, 3.0)
    seen.values[5] = 0
    seen.peaks[5] = 0
    choice = choose(seen, [np.random.default_rng(1).normal(size=(1, 32, 24, 1))], WAYS[-1])
    assert choice is not None
    assert np.isfinite(choice.divisors).all()
    assert choice.divisors[5] >= choice.divisors.max() / MAX_RATIO / 1.0001


def test_the_weights_of_all_readers_count() -> None:
    seen, random = activation(0, 30.0), np.random.default_rng(1)
    one, two = random.normal(size=(1, 32, 24, 1)), random.normal(size=(1, 8, 24, 1)) * 100
    both = squared_error(seen, [one, two], np.ones(24))
    assert both == pytest.approx(squared_error(seen, [one], np.ones(24)) + squared_error(seen, [two], np.ones(24)))


@pytest.mark.parametrize("broken", [np.zeros(24), np.full(24, np.inf), np.full(24, np.nan)])
def test_channels_never_alive_or_not_finite_are_left_alone(broken: np.ndarray) -> None:
    assert choose(Channels(broken, np.zeros((24, 8), np.float32)), [np.ones((1, 32, 24, 1))], WAYS[-1]) is None


def test_readers_without_a_weight_that_counts_are_left_alone() -> None:
    assert choose(activation(0, 30.0), [np.zeros((1, 32, 24, 1))], WAYS[-1]) is None


def test_magnitudes_whose_squares_leave_fp32_are_chosen_for_as_any() -> None:
    seen, weight = activation(0, 300.0), np.random.default_rng(1).normal(size=(32, 24)).astype(np.float32)
    scaled = Channels(seen.peaks * 1e30, seen.values * np.float32(1e30))
    plain, found = (choose(each, [weight[None, :, :, None]], (0.5,)) for each in (seen, scaled))
    assert plain is not None
    assert found is not None
    assert found.error == pytest.approx(plain.error, rel=1e-3)
