from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtopt.calibrate import histogram as module
from trtopt.calibrate.histogram import BINS, Histogram
from trtopt.errors import CalibrationError

QUICK = settings(max_examples=60)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SIZES = st.integers(0, 67) | st.sampled_from([1023, 1024, 1025, 2051])
ARRAYS = hnp.arrays(np.float32, SIZES, elements=FLOATS | st.just(0.0))


def counted(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(array)
    return histogram


def dense(histogram: Histogram) -> np.ndarray:
    used, counts = histogram.counts()
    result = np.zeros(BINS, np.int64)
    result[used] = counts
    return result


def expected(array: np.ndarray) -> np.ndarray:
    bins = np.abs(array.ravel()).view(np.uint32) >> 14
    return np.bincount(np.where(bins < 8, 0, bins).astype(np.int64), minlength=BINS)


@QUICK
@given(ARRAYS)
def test_every_value_is_counted_in_the_bin_of_its_bit_pattern(array: np.ndarray) -> None:
    histogram = counted(array)
    np.testing.assert_array_equal(dense(histogram), expected(array))
    assert histogram.total == array.size


@QUICK
@given(ARRAYS)
def test_amax_is_exact_and_zero_only_for_values_that_round_to_zero(array: np.ndarray) -> None:
    largest = float(np.abs(array).max(initial=0.0))
    assert counted(array).amax == (largest if largest >= 2.0**-132 else 0.0)


@QUICK
@given(ARRAYS)
def test_zeros_are_the_values_that_every_scale_rounds_to_zero(array: np.ndarray) -> None:
    assert counted(array).zeros == np.count_nonzero(np.abs(array) < 2.0**-132)


@QUICK
@given(st.lists(ARRAYS, min_size=1, max_size=5), st.randoms())
def test_merging_is_exact_in_any_order(arrays: list[np.ndarray], random: object) -> None:
    whole = counted(np.concatenate(arrays))
    parts = [counted(array) for array in arrays]
    random.shuffle(parts)  # type: ignore[attr-defined]
    merged = Histogram()
    for part in parts:
        merged.merge(part)
    np.testing.assert_array_equal(dense(merged), dense(whole))
    assert (merged.amax, merged.zeros, merged.total) == (whole.amax, whole.zeros, whole.total)


@QUICK
@given(ARRAYS, st.integers(1, 66))
def test_batch_size_changes_nothing(array: np.ndarray, size: int) -> None:
    split = counted(*(array[i : i + size] for i in range(0, array.size, size)))
    np.testing.assert_array_equal(dense(split), dense(counted(array)))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x[1:, 1:],
        lambda x: x.ravel()[1:],
        lambda x: np.broadcast_to(x[:1], (5, x.shape[1])),
        lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32),
        lambda x: x.astype(">f4"),
        lambda x: x[0, 0],
    ],
    ids=["strided", "transposed", "reversed", "cut", "odd", "broadcast", "unaligned", "swapped", "scalar"],
)
def test_any_memory_layout_is_counted(view: object) -> None:
    array = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    viewed = np.asarray(view(array))  # type: ignore[operator]
    np.testing.assert_array_equal(dense(counted(viewed)), expected(np.array(viewed, np.float32)))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_counted_as_float32(dtype: type) -> None:
    array = np.random.default_rng(1).normal(size=101).astype(dtype)
    np.testing.assert_array_equal(dense(counted(array)), expected(array.astype(np.float32)))


def test_counters_are_emptied_before_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLUSH_AT", 10)
    array = np.ones(8, np.float32)
    histogram = counted(*[array] * 9)
    assert int(histogram._counters.max()) <= 10
    assert histogram.counts()[1].tolist() == [72]


@pytest.mark.parametrize("value", [np.nan, -np.nan])
@pytest.mark.parametrize("place", [0, 4])
def test_nan_raises_with_the_tensors_name(value: float, place: int) -> None:
    array = np.ones(5, np.float32)
    array[place] = value
    with pytest.raises(CalibrationError, match="'layer/relu' is NaN for sample 7"):
        counted(array).check("layer/relu", "sample 7")


@pytest.mark.parametrize("mask", [np.inf, -np.inf, 1e300, -3.4e38, 1e9])
def test_infinity_and_what_stands_for_it_are_masks(mask: float) -> None:
    histogram = counted(np.array([0, 1.5, 3, mask, mask]))
    histogram.check("x", "sample 0")
    unmasked = histogram.unmasked()
    assert (unmasked.total, unmasked.zeros) == (3, 1)
    assert unmasked.amax == pytest.approx(3, rel=2**-8)
    assert unmasked.amax >= 3


def test_a_tensor_of_masks_only_has_no_values() -> None:
    assert (counted(np.full(3, -np.inf)).unmasked().total, counted(np.full(3, -np.inf)).unmasked().amax) == (0, 0)


def test_without_masks_the_absmax_is_exact() -> None:
    assert counted(np.array([0.1, 0.3], np.float32)).unmasked().amax == float(np.float32(0.3))


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex64])
def test_values_that_are_not_floating_point_are_refused(dtype: type) -> None:
    with pytest.raises(CalibrationError, match="cannot be calibrated"):
        counted(np.zeros(3, dtype))


@QUICK
@given(ARRAYS, st.sampled_from([7, 128, 2048]))
def test_linear_bins_hold_every_non_zero_value(array: np.ndarray, bins: int) -> None:
    histogram = counted(array)
    counts, width = histogram.linear(bins)
    assert counts.shape == (bins,)
    assert width * bins == pytest.approx(histogram.amax)
    assert (counts >= 0).all()
    assert counts.sum() == pytest.approx(histogram.total - histogram.zeros)
    assert histogram.amax == 0 or counts[-1] > 0


def test_linear_splits_a_bin_in_proportion_to_the_overlap() -> None:
    # 4.0 is in the bin [4, 4 + 1/128). 4 + 1/128 is in the next bin, which ends at amax and so has no width:
    # it is entirely in the last linear bin.
    histogram = counted(np.array([4, 4, 4, 4 + 1 / 128], np.float32))
    counts, width = histogram.linear(2048)
    inside = min(width, 1 / 128 - width) * 128 * 3
    assert counts[-1] == pytest.approx(1 + inside, rel=1e-6)
    assert counts[-1] + counts[-2] + counts[-3] + counts[-4] + counts[-5] == pytest.approx(4)


@QUICK
@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(0.0009765625, 1000, width=32)), st.floats(0.01, 1)
)
def test_quantile_is_within_one_bin_of_the_sorted_value(array: np.ndarray, share: float) -> None:
    ordered = np.sort(array)
    rank = share * array.size
    low = ordered[max(int(np.ceil(rank - 1e-9)) - 1, 0)]
    high = ordered[min(int(np.floor(rank + 1e-9)), array.size - 1)]
    assert low * (1 - 2**-8) <= counted(array).quantile(share) <= high * (1 + 2**-8)


def test_share_above_counts_zeros_as_values() -> None:
    histogram = counted(np.array([0, 0, 1, 2, -4], np.float32))
    assert histogram.share_above(3.0) == pytest.approx(0.2)
    assert histogram.share_above(0.5) == pytest.approx(0.6)
    assert histogram.share_above(4.0) == 0.0
    assert Histogram().share_above(1.0) == 0.0


def test_numba_is_imported_only_when_something_is_counted() -> None:
    code = (
        "import sys, trtopt.calibrate.observe, trtopt.calibrate.table\n"
        "from trtopt.calibrate import method, method_names\n"
        "[method(name) for name in method_names()]\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
