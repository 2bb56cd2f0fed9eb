"""Coverage of the confidence intervals on synthetic series, and the order and number of runs of the measuring loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from trtopt.bench import intervals, latency

TRIALS = 400
PHI = 0.9
MEAN = math.exp(0.1**2 / 2)
"""Mean of exp(0.1 z) for a normal z."""


def series(generator: np.random.Generator, blocks: int = 20, runs: int = 150, phi: float = PHI) -> np.ndarray:
    """Return latencies around 1 ms from an autoregressive process with coefficient `phi`, skewed to the slow side."""
    noise = generator.normal(size=blocks * runs + 200)
    smooth = lfilter([math.sqrt(1 - phi**2)], [1, -phi], noise)[200:]
    return np.exp(0.1 * smooth).reshape(blocks, runs)


def covered(bound: str, truth: float) -> tuple[float, float]:
    """Return the share of trials with the truth above the lower bound, and with the truth below the upper bound."""
    generator = np.random.default_rng(1)
    drawn = [intervals.bounds(series(generator))[bound] for _ in range(TRIALS)]
    return (
        sum(interval.low <= truth for interval in drawn) / TRIALS,
        sum(interval.high >= truth for interval in drawn) / TRIALS,
    )


def test_the_interval_covers_the_mean_of_correlated_runs() -> None:
    generator = np.random.default_rng(0)
    drawn = [series(generator) for _ in range(TRIALS)]
    hits = [abs(blocks.mean() - MEAN) <= intervals.noise(blocks) * blocks.mean() for blocks in drawn]
    assert 0.93 <= np.mean(hits) <= 0.99
    # The standard error of the mean assumes independent runs: its nominal 95 % covers only about half of the trials.
    naive = [abs(blocks.mean() - MEAN) <= 1.96 * blocks.std() / math.sqrt(blocks.size) for blocks in drawn]
    assert np.mean(naive) < 0.6


def test_the_interval_of_independent_runs_is_hardly_wider_than_necessary() -> None:
    generator = np.random.default_rng(0)
    drawn = [series(generator, phi=0.0) for _ in range(TRIALS)]
    assert (
        0.93
        <= np.mean([abs(blocks.mean() - MEAN) <= intervals.noise(blocks) * blocks.mean() for blocks in drawn])
        <= 0.99
    )
    ideal = 1.96 * 0.1 / math.sqrt(3000)
    assert np.mean([intervals.noise(blocks) for blocks in drawn]) < 1.4 * ideal


@pytest.mark.parametrize(
    ("bound", "truth"),
    [("mean", MEAN), ("p50", 1.0), ("p90", math.exp(0.128155)), ("p99", math.exp(0.232635))],
)
def test_one_sided_bounds_miss_in_about_five_percent_of_trials(bound: str, truth: float) -> None:
    low, high = covered(bound, truth)
    assert 0.9 <= low <= 1.0
    assert 0.9 <= high <= 1.0


def test_percentiles_are_measured_latencies() -> None:
    blocks = np.arange(1.0, 201.0).reshape(8, 25)
    assert intervals.summary(blocks) == {"mean": 100.5, "p50": 100.0, "p90": 180.0, "p95": 190.0, "p99": 198.0}


@given(st.integers(8, 24), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_bounds_enclose_their_value(blocks: int, runs: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).exponential(size=(blocks, runs)) + 0.1
    values, bounds = intervals.summary(drawn), intervals.bounds(drawn)
    assert all(bounds[name].low <= values[name] <= bounds[name].high for name in values)


def test_a_high_percentile_of_few_runs_has_no_upper_bound() -> None:
    few, many = np.random.default_rng(0).random((20, 14)), np.random.default_rng(0).random((20, 60))
    assert intervals.bounds(few)["p99"].high == math.inf  # all of the 280 runs may lie below the true percentile
    assert intervals.bounds(many)["p99"].high < math.inf


def test_correlated_runs_widen_the_bounds_of_percentiles() -> None:
    calm = np.random.default_rng(0).random((20, 60))
    assert intervals.bounds(np.sort(calm, axis=None).reshape(20, 60))["p90"].high > intervals.bounds(calm)["p90"].high


def test_equal_latencies_have_an_interval_of_zero_width() -> None:
    blocks = np.full((10, 5), 2.0)
    assert intervals.noise(blocks) == 0.0
    assert (intervals.bounds(blocks)["mean"].low, intervals.bounds(blocks)["mean"].high) == (2.0, 2.0)


def test_too_few_blocks_are_rejected() -> None:
    with pytest.raises(ValueError, match="7 blocks are too few"):
        intervals.noise(np.ones((7, 100)))


def test_drift_shared_by_both_targets_cancels_in_the_ratio() -> None:
    generator = np.random.default_rng(3)
    drift = np.linspace(1.0, 1.5, 20)[:, None]
    slow, fast = 2.0 * drift * series(generator, phi=0.0), drift * series(generator, phi=0.0)
    interval = intervals.ratio(slow, fast)
    assert interval.low < 2.0 < interval.high
    assert interval.high - interval.low < 0.05
    assert intervals.noise(slow) > 0.05


def test_the_interval_of_a_ratio_covers_the_truth() -> None:
    generator = np.random.default_rng(4)
    drawn = [intervals.ratio(1.5 * series(generator), series(generator)) for _ in range(TRIALS)]
    assert np.mean([interval.low <= 1.5 for interval in drawn]) >= 0.9
    assert np.mean([interval.high >= 1.5 for interval in drawn]) >= 0.9


class FakeRun:
    """Run with given latencies (the last one repeats) that appends its name to a log."""

    def __init__(self, name: str, log: list[str], *latencies: float) -> None:
        self.name, self.log, self.latencies, self.calls = name, log, latencies, 0

    def __call__(self) -> float:
        self.log.append(self.name)
        self.calls += 1
        return self.latencies[min(self.calls, len(self.latencies)) - 1]


def test_targets_are_measured_in_turns_in_alternating_order() -> None:
    log: list[str] = []
    ticks: list[tuple[int, int]] = []
    targets = [FakeRun("a", log, 100.0), FakeRun("b", log, 300.0)]
    measured = latency.measure(targets, 3.0, lambda done, total: ticks.append((done, total)))
    assert [series.blocks.shape for series in measured] == [(10, 3), (10, 1)]
    assert "".join(log[-40:]) == "aaabbaaa" * 5
    assert ticks == [(turn, 10) for turn in range(1, 11)]


def test_a_fast_target_runs_once_untimed_after_another_target() -> None:
    log: list[str] = []
    measured = latency.measure([FakeRun("a", log, 10.0), FakeRun("b", log, 10.0)], 0.4, lambda done, total: None)
    assert [series.blocks.shape for series in measured] == [(20, 2), (20, 2)]
    assert "".join(log[-120:]) == "aaabbbbbbaaa" * 10


def test_the_number_of_runs_does_not_depend_on_the_measured_latencies() -> None:
    quiet = [FakeRun("a", [], *([1.0] * 200), 1.0), FakeRun("b", [], *([1.0] * 200), 1.0)]
    later = [FakeRun("a", [], *([1.0] * 200), 9.0), FakeRun("b", [], *([1.0] * 200), 50.0)]
    shapes = [
        [series.blocks.shape for series in latency.measure(targets, 1.0, lambda done, total: None)]
        for targets in (quiet, later)
    ]
    assert shapes[0] == shapes[1]


def test_a_slow_target_gets_the_minimum_number_of_blocks() -> None:
    slow = FakeRun("a", [], 5000.0)
    assert latency.measure([slow], 1.0, lambda done, total: None)[0].blocks.shape == (intervals.MIN_BLOCKS, 1)


def test_warming_up_ends_when_runs_no_longer_get_faster() -> None:
    falling = [100.0, 80.0, 60.0, 40.0, 30.0, 20.0, 15.0, 12.0, 10.0]
    assert 9 < latency.warm_up(FakeRun("a", [], *falling), 10_000) < 20


def test_warming_up_ends_at_the_time_limit() -> None:
    restless = FakeRun("a", [], *(float(10 * 2**k) for k in range(60)))
    assert latency.warm_up(restless, 1000.0) == 7  # 10 + 20 + ... + 640 exceed it
    assert latency.warm_up(FakeRun("a", [], 5000.0), 1000.0) == 2


@pytest.mark.parametrize(
    ("pilot", "budget", "expected"),
    [
        ([1.0, 1.0, 1.0], 2000.0, 30),  # no variation: 600 runs in total, for the percentiles
        ([0.01, 0.01, 0.01], 2000.0, 2500),  # fast runs: blocks of at least 25 ms
        ([0.5, 1.5, 0.5, 1.5], 2000.0, 100),  # high variation: as many as the time allows
        ([0.9, 1.1, 0.9, 1.1], 1e6, 103),  # enough time: as many as needed for 1 %
        ([100.0, 101.0], 2000.0, 1),
    ],
)
def test_the_pilot_determines_the_number_of_runs_per_block(pilot: list[float], budget: float, expected: int) -> None:
    assert latency.runs(pilot, budget, 20) == expected
