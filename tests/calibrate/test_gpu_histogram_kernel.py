"""The counting kernel on a GPU: its histograms equal the host's exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from trtopt.calibrate.gpu_histogram import Counters
from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.source import DeviceCounting
from trtopt.engine.cuda.device import open_device

pytestmark = pytest.mark.gpu
RANDOM = np.random.default_rng(0)


@dataclass(frozen=True)
class Tensor:
    pointer: int
    shape: tuple[int, ...]
    dtype: str


@pytest.fixture
def gpu() -> Iterator[DeviceCounting]:
    with open_device() as device:
        yield DeviceCounting(device)


def assert_counted_as_on_the_host(gpu: DeviceCounting, arrays: dict[str, np.ndarray], skip: int = 0) -> None:
    """Count the arrays on both sides, without their first `skip` elements. Skipping shifts their addresses."""
    tensors = {}
    for name, array in arrays.items():
        pointer = gpu.allocate(array.nbytes)
        gpu.upload(pointer, array)
        tensors[name] = Tensor(pointer + skip * array.itemsize, (max(array.size - skip, 0),), array.dtype.name)
    counters = Counters(gpu, list(arrays))
    for _ in range(2):  # the second run adds to the first
        largest = counters.add(tensors)
    for name, actual in counters.histograms().items():
        expected = Histogram()
        for _ in range(2):
            expected.add(arrays[name][skip:])
        assert [part.tolist() for part in actual.counts()] == [part.tolist() for part in expected.counts()], name
        assert (actual.amax, actual.total) == (expected.amax, expected.total), name
        assert largest[name] == expected.amax


def normal(size: int) -> np.ndarray:
    return RANDOM.standard_normal(size, np.float32)


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_any_size_and_any_address(gpu: DeviceCounting, skip: int) -> None:
    sizes = [0, 1, 2, 3, 4, 5, 31, 4095, 4096, 4097, 16383, 16384, 16385, 65537, 1_000_003, 30_000_001]
    assert_counted_as_on_the_host(gpu, {str(size): normal(size) for size in sizes}, skip)


def test_many_small_tensors(gpu: DeviceCounting) -> None:
    sizes = RANDOM.integers(1, 3000, 700)
    assert_counted_as_on_the_host(gpu, {str(i): normal(int(size)) for i, size in enumerate(sizes)})


@pytest.mark.parametrize(
    "make",
    [
        lambda n: np.zeros(n, np.float32),
        lambda n: np.full(n, -3.5, np.float32),
        lambda n: np.maximum(normal(n), 0),
        lambda n: np.exp((30 * normal(n)).clip(-87, 88)),
        lambda n: np.where(normal(n) < 0, np.float32(1e-6), np.float32(-1e4)),
        lambda n: np.where(normal(n) < 3, normal(n), np.float32(3e30)),
        lambda n: normal(n) * np.float32(1e-41),
        lambda n: (normal(n) * 3).astype(np.float16),
        lambda n: normal(n).astype(np.float64) * 1e30,
    ],
    ids=["zeros", "one value", "relu", "wide", "two far values", "outliers", "denormals", "float16", "float64"],
)
def test_any_distribution(gpu: DeviceCounting, make) -> None:
    assert_counted_as_on_the_host(gpu, {"x": np.ascontiguousarray(make(2_000_001))})


def test_every_bit_pattern_of_the_top_bits(gpu: DeviceCounting) -> None:
    words = RANDOM.integers(0, 1 << 32, 3_000_000, np.uint32).view(np.float32)
    finite = np.where(np.isfinite(words), words, np.float32(0))
    assert_counted_as_on_the_host(gpu, {"x": finite})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_seen(gpu: DeviceCounting, bad: float) -> None:
    array = normal(100_000)
    array[77_777] = bad
    pointer = gpu.allocate(array.nbytes)
    gpu.upload(pointer, array)
    largest = Counters(gpu, ["x"]).add({"x": Tensor(pointer, array.shape, "float32")})
    assert not np.isfinite(largest["x"])
