"""The host side of the counting kernel: its table, the shares of its blocks, and the resulting histograms."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pytest
from calibrate.host_gpu import HostGpu
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.calibrate import gpu_histogram
from trtopt.calibrate.gpu_histogram import BLOCKS, SMALLEST_SHARE, THREADS, Counters, pack
from trtopt.calibrate.histogram import BINS, Histogram
from trtopt.errors import CalibrationError


@dataclass(frozen=True)
class Tensor:
    array: np.ndarray

    @property
    def pointer(self) -> int:
        return self.array.ctypes.data

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> str:
        return self.array.dtype.name


def on_host(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(array)
    return histogram


def assert_same(actual: Histogram, expected: Histogram) -> None:
    assert [part.tolist() for part in actual.counts()] == [part.tolist() for part in expected.counts()]
    assert (actual.amax, actual.total) == (expected.amax, expected.total)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def test_counts_equal_those_of_the_host() -> None:
    arrays = {"a": normal(3, 5, 7), "b": np.maximum(normal(1001), 0), "c": np.zeros(9, np.float32)}
    counters = Counters(HostGpu(), list(arrays))
    largest = counters.add({name: Tensor(array) for name, array in arrays.items()})
    assert largest == {name: float(np.abs(array).max()) for name, array in arrays.items()}
    for name, histogram in counters.histograms().items():
        assert_same(histogram, on_host(arrays[name]))


def test_batches_add_up() -> None:
    counters = Counters(HostGpu(), ["x"])
    arrays = [normal(100, seed=seed) for seed in range(3)]
    for array in arrays:
        counters.add({"x": Tensor(array)})
    assert_same(counters.histograms()["x"], on_host(*arrays))


def test_cleared_values_are_not_counted() -> None:
    counters = Counters(HostGpu(), ["x"])
    counters.add({"x": Tensor(normal(100) * 100)})
    counters.clear()
    counters.add({"x": Tensor(normal(50))})
    assert_same(counters.histograms()["x"], on_host(normal(50)))


@pytest.mark.parametrize("value", [1e-40, 2.0**-135, 1e-37, 3e38])
def test_the_smallest_and_the_largest_magnitudes_are_copied_back(value: float) -> None:
    array = np.array([0, value, -value], np.float32)
    counters = Counters(HostGpu(), ["x"])
    largest = counters.add({"x": Tensor(array)})
    assert_same(counters.histograms()["x"], on_host(array))
    assert largest["x"] == on_host(array).amax


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_counted_as_float32(dtype: type) -> None:
    array = normal(1000).astype(dtype)
    counters = Counters(HostGpu(), ["x"])
    counters.add({"x": Tensor(array)})
    assert_same(counters.histograms()["x"], on_host(array))


def test_nan_is_reported_at_once() -> None:
    counters = Counters(HostGpu(), ["x", "y"])
    poisoned = normal(10)
    poisoned[3] = np.nan
    largest = counters.add({"x": Tensor(normal(10)), "y": Tensor(poisoned)})
    assert np.isfinite(largest["x"])
    assert not np.isfinite(largest["y"])
    with pytest.raises(CalibrationError, match="tensor 'y' is"):
        counters.histograms()["y"].check("y", "here")


@pytest.mark.parametrize("dtype", [np.int64, np.bool_])
def test_a_tensor_that_is_not_floating_point_is_named(dtype: type) -> None:
    with pytest.raises(CalibrationError, match=r"tensor 'x' cannot be calibrated: its dtype is (int64|bool)"):
        Counters(HostGpu(), ["x"]).add({"x": Tensor(np.ones(3, dtype))})


def test_nothing_is_launched_for_empty_tensors_or_no_tensors() -> None:
    gpu = HostGpu()
    counters = Counters(gpu, ["x"])
    assert counters.add({"x": Tensor(np.empty((0, 3), np.float32))}) == {"x": 0.0}
    assert counters.histograms()["x"].total == 0
    assert Counters(gpu, []).add({}) == {}
    assert Counters(gpu, []).histograms() == {}
    assert gpu.launched == []


def test_a_tensor_starts_where_four_numbers_can_be_loaded_at_once() -> None:
    tensors = {"a": Tensor(normal(5)), "b": Tensor(normal(8)), "none": Tensor(normal(0)), "c": Tensor(normal(1))}
    table, total = pack(tensors, {"a": 3, "b": 0, "none": 1, "c": 2})
    assert table[:, 1:].tolist() == [[5, 0, 0, 3], [8, 8, 0, 0], [1, 16, 0, 2]]
    assert table[:, 0].tolist() == [tensors[name].pointer for name in "abc"]
    assert total == 20


@settings(max_examples=30)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(1, 5), st.sampled_from([4, 16, 64]))
def test_every_element_is_counted_once_for_any_shares(sizes: list[int], blocks: int, least: int) -> None:
    arrays = {str(i): normal(size, seed=i) for i, size in enumerate(sizes)}
    counters = Counters(HostGpu(), list(arrays))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_histogram, "BLOCKS", blocks)
        patch.setattr(gpu_histogram, "SMALLEST_SHARE", least)
        counters.add({name: Tensor(array) for name, array in arrays.items()})
    for name, histogram in counters.histograms().items():
        assert_same(histogram, on_host(arrays[name]))


def test_large_tensors_are_spread_over_all_blocks_and_small_ones_over_few() -> None:
    for size, blocks in ((100, 1), (SMALLEST_SHARE + 1, 2), (SMALLEST_SHARE * BLOCKS * 2, BLOCKS)):
        gpu = HostGpu()
        Counters(gpu, ["x"]).add({"x": Tensor(np.zeros(size, np.float32))})
        assert gpu.launched == [("count", blocks, THREADS)]


def test_a_histogram_from_the_gpu_merges_like_any_other() -> None:
    whole = on_host(normal(100), normal(50, seed=1))
    part = on_host(normal(50, seed=1))
    counters = Counters(HostGpu(), ["x"])
    counters.add({"x": Tensor(normal(100))})
    merged = counters.histograms()["x"]
    merged.merge(part)
    assert_same(merged, whole)


def test_the_constants_of_the_kernel_and_of_its_launch_agree() -> None:
    source = files("trtopt.calibrate").joinpath("gpu_histogram.cu").read_text()
    assert f"#define THREADS {THREADS}\n" in source
    assert "#define SHIFT 14\n" in source
    assert BINS == 1 << (31 - 14)
    assert "tensor.slot << 17" in source
