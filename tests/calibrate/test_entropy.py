from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.calibrate import kernels
from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.methods import entropy
from trtopt.formats import INT8


def reference(counts: list[float], i: int, levels: int) -> float:
    """Return the KL divergence of the first i bins, in plain Python and literally as the slides define it."""
    outliers = sum(counts[i:])
    p = list(counts[:i])
    p[i - 1] += outliers
    merged, filled = [0.0] * levels, [0] * levels
    for j in range(i):
        level = j * levels // i
        merged[level] += counts[j]
        filled[level] += counts[j] != 0
    q = [merged[j * levels // i] / filled[j * levels // i] if counts[j] else 0.0 for j in range(i)]
    total_p, total_q = sum(p), sum(q)
    divergence = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            if b == 0:
                return math.inf
            divergence += a / total_p * math.log((a / total_p) / (b / total_q))
    return divergence


@settings(max_examples=100)
@given(
    st.integers(2, 24),
    st.lists(st.integers(0, 9) | st.sampled_from([0, 0, 0, 1000, 0.25]), max_size=120),
    st.integers(1, 50),
    st.integers(0, 60),
)
def test_search_finds_the_minimum_of_the_literal_definition(
    levels: int, body: list[float], last: float, gap: int
) -> None:
    counts = [*body, *[0.0] * gap, float(last)]
    counts = [0.0] * max(levels - len(counts), 0) + counts
    chosen = int(kernels.least_divergent(np.array(counts, np.float64), levels, levels, entropy.ROUNDING))
    divergences = {i: reference(counts, i, levels) for i in range(levels, len(counts) + 1)}
    assert divergences[chosen] <= min(divergences.values()) + 1e-9


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(1, 9), st.integers(8, 40))
def test_ties_go_to_the_range_that_clips_less(levels: int, count: int, size: int) -> None:
    # All bins are equal, so merging bins loses nothing and only clipping has a cost.
    assert kernels.least_divergent(np.full(size, float(count)), levels, levels, entropy.ROUNDING) == size


@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "heavy"])
def test_range_is_that_of_the_literal_definition_on_full_size_histograms(shape: str) -> None:
    random = np.random.default_rng(3)
    values = {
        "normal": random.normal(size=20000),
        "laplace": random.laplace(size=20000),
        "relu": np.maximum(random.normal(size=20000), 0),
        "heavy": random.standard_t(3, size=20000),
    }[shape]
    histogram = Histogram()
    histogram.add(values)
    counts, width = histogram.linear(entropy.BINS)
    chosen = round(entropy.amax(histogram, INT8) / width)
    near = [reference(counts.tolist(), i, entropy.LEVELS) for i in range(128, 2049, 37)]
    assert reference(counts.tolist(), chosen, entropy.LEVELS) <= min(near) + 1e-9


def test_a_thin_tail_is_clipped() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).standard_t(2, size=1_000_000).astype(np.float32))
    assert 20 < entropy.amax(histogram, INT8) < histogram.amax / 4


def test_a_range_that_ends_in_a_gap_is_never_chosen() -> None:
    counts = np.array([9.0, 9, 9, 9, 0, 0, 0, 1])
    assert reference(counts.tolist(), 5, 4) == math.inf
    assert kernels.least_divergent(counts, 4, 4, entropy.ROUNDING) in (4, 8)


def test_a_uniform_distribution_is_not_clipped() -> None:
    histogram = Histogram()
    histogram.add(np.linspace(-6, 6, 100_001, dtype=np.float32))
    assert entropy.amax(histogram, INT8) > 5.9
