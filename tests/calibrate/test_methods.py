from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtopt.calibrate import method, method_names
from trtopt.calibrate.histogram import ALL_ZERO_AMAX, Histogram
from trtopt.calibrate.methods import mse, percentile
from trtopt.calibrate.table import to_scale
from trtopt.errors import UsageError
from trtopt.formats import INT8, Format
from trtopt.precision.fp8 import FORMAT as FP8

ALL = method_names()


def counted(values: object) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values))
    return histogram


def test_methods_are_the_modules_of_the_folder() -> None:
    assert {"entropy", "minmax", "mse", "percentile"} <= set(ALL)
    for name in ALL:
        assert callable(method(name))


def test_a_misspelt_method_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"unknown calibration method 'entrpy'\. Did you mean entropy"):
        method("entrpy")


def test_a_shared_module_is_not_a_method() -> None:
    with pytest.raises(UsageError, match=r"Choose one of .*minmax"):
        method("kernels")


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_range_and_scale_are_positive_and_finite_for_any_values(name: str, values: np.ndarray) -> None:
    histogram = counted(values)
    amax = method(name)(histogram, INT8)
    assert 0 < amax < np.inf
    assert amax <= (histogram.amax or ALL_ZERO_AMAX)
    scale = to_scale(amax)
    assert np.finfo(np.float32).tiny <= scale < np.inf
    assert scale == float(np.float32(scale))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [1.0, -3.3, 6.0, 1e-30, 3e38])
def test_a_constant_is_represented_to_within_half_a_percent(name: str, value: float) -> None:
    assert method(name)(counted(np.full(1000, value, np.float32)), INT8) == pytest.approx(abs(value), rel=5e-3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("values", [np.zeros(9, np.float32), np.full(9, 1e-42, np.float32), np.zeros(0, np.float32)])
def test_a_tensor_of_zeros_gets_the_neutral_range(name: str, values: np.ndarray) -> None:
    assert method(name)(counted(values), INT8) == ALL_ZERO_AMAX


@pytest.mark.parametrize("name", ALL)
def test_the_sign_does_not_matter(name: str) -> None:
    values = np.abs(np.random.default_rng(0).normal(size=5000)).astype(np.float32)
    assert method(name)(counted(values), INT8) == method(name)(counted(-values), INT8)


def test_minmax_is_the_absmax() -> None:
    assert method("minmax")(counted(np.array([1.25, -7.3, 0], np.float32)), INT8) == float(np.float32(7.3))


def test_percentile_is_that_of_the_values() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=200_000)).astype(np.float32)
    assert percentile.amax(counted(values), INT8) == pytest.approx(np.quantile(values, 0.9999), rel=4e-3)


def test_percentile_does_not_depend_on_padding_with_zeros() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    padded = np.concatenate([values, np.zeros(10**6, np.float32)])
    assert percentile.amax(counted(padded), INT8) == percentile.amax(counted(values), INT8)


def error(values: np.ndarray, amax: float) -> float:
    scale = amax / 127
    return float(np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2))


@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "heavy", "uniform", "tiny beside one outlier"])
def test_mse_is_as_good_as_the_best_range_tried_on_the_values(shape: str) -> None:
    random = np.random.default_rng(5)
    values = {
        "normal": random.normal(size=50_000),
        "laplace": random.laplace(size=50_000),
        "relu": np.maximum(random.normal(size=50_000), 0),
        "heavy": random.standard_t(2, size=50_000),
        "uniform": random.uniform(-3, 3, size=50_000),
        "tiny beside one outlier": np.append(random.normal(size=200_000), 30.0),
    }[shape].astype(np.float32)
    values = values.astype(np.float64)
    largest = float(np.abs(values).max())
    best = min(error(values, largest * step / 400) for step in range(4, 401))
    assert error(values, mse.amax(counted(values), INT8)) <= best * 1.02


def e4m3_error(values: np.ndarray, amax: float) -> float:
    scale = amax / FP8.max
    clipped = np.clip(values / scale, -FP8.max, FP8.max)
    return float(np.mean((clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale - values) ** 2))


@pytest.mark.parametrize("degrees", [2, 3, 5])
def test_mse_for_fp8_minimizes_the_error_of_e4m3(degrees: int) -> None:
    values = np.random.default_rng(5).standard_t(degrees, size=50_000)
    histogram = counted(values.astype(np.float32))
    fp8, int8 = mse.amax(histogram, FP8), mse.amax(histogram, INT8)
    assert fp8 != int8
    assert e4m3_error(values, fp8) <= e4m3_error(values, int8)
    largest = float(np.abs(values).max())
    best = min(e4m3_error(values, largest * 2.0 ** (-step / 16)) for step in range(200))
    assert e4m3_error(values, fp8) <= best * 1.02


@settings(max_examples=40)
@given(st.floats(0.001, 1.0), st.integers(0, 99))
def test_the_squared_error_of_e4m3_agrees_with_the_values(share: float, seed: int) -> None:
    from trtopt.calibrate import kernels

    values = np.random.default_rng(seed).standard_t(3, size=20_000).astype(np.float32)
    histogram = counted(values)
    amax = histogram.amax * share
    summed = kernels.squared_error(histogram.bins(), amax / FP8.max, np.inf, FP8.numbers)
    assert summed / values.size == pytest.approx(e4m3_error(values.astype(np.float64), amax), rel=0.05)


@pytest.mark.parametrize(("format", "clips_from"), [(INT8, 127.5), (FP8, 464.0)], ids=lambda value: str(value)[:30])
def test_clipping_begins_half_a_step_above_the_largest_number(format: Format, clips_from: float) -> None:
    assert format.clips_from == clips_from


@settings(max_examples=40)
@given(st.floats(0.01, 1.0), st.integers(0, 99))
def test_the_squared_error_formula_agrees_with_the_values(share: float, seed: int) -> None:
    from trtopt.calibrate import kernels

    values = np.random.default_rng(seed).normal(size=20_000).astype(np.float32)
    histogram = counted(values)
    amax = histogram.amax * share
    summed = kernels.squared_error(histogram.bins(), amax / INT8.max, np.inf, INT8.numbers)
    assert summed / values.size == pytest.approx(error(values.astype(np.float64), amax), rel=0.05)
