"""The intervals cover what they say on made-up series, and the loop measures in turns, as often as was fixed before."""

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
"""Of exp(0.1 z), z normal."""


def series(generator: np.random.Generator, blocks: int = 20, runs: int = 150, phi: float = PHI) -> np.ndarray:
    """Latencies around 1 ms, each like the one before (an autoregressive process), skewed to the slow side."""
    noise = generator.normal(size=blocks * runs + 200)
    smooth = lfilter([math.sqrt(1 - phi**2)], [1, -phi], noise)[200:]
    return np.exp(0.1 * smooth).reshape(blocks, runs)


def covered(bound: str, truth: float) -> tuple[float, float]:
    """In how many trials the truth is above the lower, and below the upper bound."""
    generator = np.random.default_rng(1)
    found = [intervals.bounds(series(generator))[bound] for _ in range(TRIALS)]
    return (
        sum(each.low <= truth for each in found) / TRIALS,
        sum(each.high >= truth for each in found) / TRIALS,
    )


def test_the_noise_covers_the_mean_although_neighbouring_runs_are_alike() -> None:
    generator = np.random.default_rng(0)
    drawn = [series(generator) for _ in range(TRIALS)]
    hits = [abs(each.mean() - MEAN) <= intervals.noise(each) * each.mean() for each in drawn]
    assert 0.93 <= np.mean(hits) <= 0.99
    # The usual error of a mean, which takes runs for independent, says 95 % and is right in half of the cases.
    naive = [abs(each.mean() - MEAN) <= 1.96 * each.std() / math.sqrt(each.size) for each in drawn]
    assert np.mean(naive) < 0.6


def test_the_noise_of_independent_runs_is_hardly_wider_than_it_must_be() -> None:
    generator = np.random.default_rng(0)
    drawn = [series(generator, phi=0.0) for _ in range(TRIALS)]
    assert 0.93 <= np.mean([abs(each.mean() - MEAN) <= intervals.noise(each) * each.mean() for each in drawn]) <= 0.99
    ideal = 1.96 * 0.1 / math.sqrt(3000)
    assert np.mean([intervals.noise(each) for each in drawn]) < 1.4 * ideal


@pytest.mark.parametrize(
    ("bound", "truth"),
    [("mean", MEAN), ("p50", 1.0), ("p90", math.exp(0.128155)), ("p99", math.exp(0.232635))],
)
def test_one_sided_bounds_err_in_about_five_percent(bound: str, truth: float) -> None:
    low, high = covered(bound, truth)
    assert 0.9 <= low <= 1.0
    assert 0.9 <= high <= 1.0


def test_percentiles_are_latencies_that_were_measured() -> None:
    blocks = np.arange(1.0, 201.0).reshape(8, 25)
    found = intervals.summary(blocks)
    assert found == {"mean": 100.5, "p50": 100.0, "p90": 180.0, "p95": 190.0, "p99": 198.0}


@given(st.integers(8, 24), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_bounds_enclose_their_value(blocks: int, runs: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).exponential(size=(blocks, runs)) + 0.1
    values, bounds = intervals.summary(drawn), intervals.bounds(drawn)
    assert all(bounds[name].low <= values[name] <= bounds[name].high for name in values)


def test_a_percentile_that_few_runs_cannot_bound_has_no_upper_bound() -> None:
    few, many = np.random.default_rng(0).random((20, 14)), np.random.default_rng(0).random((20, 60))
    assert intervals.bounds(few)["p99"].high == math.inf  # 280 runs: all of them may lie below it
    assert intervals.bounds(many)["p99"].high < math.inf


def test_runs_that_come_in_slow_stretches_are_worth_fewer() -> None:
    calm = np.random.default_rng(0).random((20, 60))
    assert intervals.bounds(np.sort(calm, axis=None).reshape(20, 60))["p90"].high > intervals.bounds(calm)["p90"].high


def test_equal_latencies_have_no_noise() -> None:
    blocks = np.full((10, 5), 2.0)
    assert intervals.noise(blocks) == 0.0
    assert (intervals.bounds(blocks)["mean"].low, intervals.bounds(blocks)["mean"].high) == (2.0, 2.0)


def test_too_few_blocks_say_nothing() -> None:
    with pytest.raises(ValueError, match="7 blocks are too few"):
        intervals.noise(np.ones((7, 100)))


def test_a_drift_that_both_share_cancels_in_their_ratio() -> None:
    generator = np.random.default_rng(3)
    drift = np.linspace(1.0, 1.5, 20)[:, None]
    slow, fast = 2.0 * drift * series(generator, phi=0.0), drift * series(generator, phi=0.0)
    found = intervals.ratio(slow, fast)
    assert found.low < 2.0 < found.high
    assert found.high - found.low < 0.05
    assert intervals.noise(slow) > 0.05


def test_the_ratio_covers_the_truth() -> None:
    generator = np.random.default_rng(4)
    found = [intervals.ratio(1.5 * series(generator), series(generator)) for _ in range(TRIALS)]
    assert np.mean([each.low <= 1.5 for each in found]) >= 0.9
    assert np.mean([each.high >= 1.5 for each in found]) >= 0.9


class Made:
    """A run that takes as long as a series says, and remembers when it was called."""

    def __init__(self, name: str, log: list[str], *took: float) -> None:
        self.name, self.log, self.took, self.calls = name, log, took, 0

    def __call__(self) -> float:
        self.log.append(self.name)
        self.calls += 1
        return self.took[min(self.calls, len(self.took)) - 1]


def test_targets_are_measured_in_turns_forwards_and_backwards() -> None:
    log: list[str] = []
    ticks: list[tuple[int, int]] = []
    lanes = [Made("a", log, 100.0), Made("b", log, 300.0)]
    found = latency.measure(lanes, 3.0, lambda done, total: ticks.append((done, total)))
    assert [each.blocks.shape for each in found] == [(10, 3), (10, 1)]
    assert "".join(log[-40:]) == "aaabbaaa" * 5
    assert ticks == [(turn, 10) for turn in range(1, 11)]


def test_a_quick_target_runs_once_untimed_when_another_one_had_its_turn() -> None:
    log: list[str] = []
    found = latency.measure([Made("a", log, 10.0), Made("b", log, 10.0)], 0.4, lambda done, total: None)
    assert [each.blocks.shape for each in found] == [(20, 2), (20, 2)]
    assert "".join(log[-120:]) == "aaabbbbbbaaa" * 10


def test_the_number_of_runs_does_not_depend_on_what_they_give() -> None:
    quiet = [Made("a", [], *([1.0] * 200), 1.0), Made("b", [], *([1.0] * 200), 1.0)]
    later = [Made("a", [], *([1.0] * 200), 9.0), Made("b", [], *([1.0] * 200), 50.0)]
    shapes = [[e.blocks.shape for e in latency.measure(lanes, 1.0, lambda d, t: None)] for lanes in (quiet, later)]
    assert shapes[0] == shapes[1]


def test_a_slow_target_gets_its_least_number_of_blocks() -> None:
    slow = Made("a", [], 5000.0)
    assert latency.measure([slow], 1.0, lambda done, total: None)[0].blocks.shape == (intervals.MIN_BLOCKS, 1)


def test_warming_up_ends_when_it_no_longer_gets_faster() -> None:
    falling = [100.0, 80.0, 60.0, 40.0, 30.0, 20.0, 15.0, 12.0, 10.0]
    assert 9 < latency.warm_up(Made("a", [], *falling), 10_000) < 20


def test_warming_up_is_bounded() -> None:
    restless = Made("a", [], *(float(10 * 2**k) for k in range(60)))
    assert latency.warm_up(restless, 1000.0) == 7  # 10 + 20 + ... + 640 exceed it
    assert latency.warm_up(Made("a", [], 5000.0), 1000.0) == 2


@pytest.mark.parametrize(
    ("pilot", "budget", "expected"),
    [
        ([1.0, 1.0, 1.0], 2000.0, 30),  # quiet: 600 runs, for the percentiles
        ([0.01, 0.01, 0.01], 2000.0, 2500),  # and blocks of 25 ms at least
        ([0.5, 1.5, 0.5, 1.5], 2000.0, 100),  # restless: as many as there is time for
        ([0.9, 1.1, 0.9, 1.1], 1e6, 103),  # or as 1 % takes
        ([100.0, 101.0], 2000.0, 1),
    ],
)
def test_the_pilot_decides_how_many_runs_a_block_has(pilot: list[float], budget: float, expected: int) -> None:
    assert latency.runs(pilot, budget, 20) == expected
