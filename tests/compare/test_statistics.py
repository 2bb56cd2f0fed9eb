"""Bounds of fractions and of paired drops, and the verdicts based on them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm

from trtopt.compare.gate import judge
from trtopt.compare.gates import parse_gates
from trtopt.compare.statistics import Bounds, drop, mcnemar, needed, settles, share
from trtopt.types import OutputDrift

RUNS = 1000


def literal_score(only_before: int, only_after: int, samples: int, delta: float) -> float:
    """Return Tango's statistic, with the nuisance rate from a numeric maximum of the likelihood."""
    rest = samples - only_before - only_after

    def unlikely(rate: float) -> float:
        cells = ((only_before, rate + delta), (only_after, rate), (rest, 1.0 - 2.0 * rate - delta))
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in cells if count)

    low = max(0.0, -delta)
    rate = float(
        minimize_scalar(unlikely, bounds=(low, (1.0 - delta) / 2), method="bounded", options={"xatol": 1e-13}).x
    )
    variance = samples * (2.0 * rate + delta - delta * delta)
    return (only_before - only_after - samples * delta) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("before", "after", "samples"), [(12, 6, 50), (20, 19, 200), (12, 9, 44), (30, 30, 1000), (40, 8, 60)]
)
def test_the_drop_is_bounded_where_a_literal_score_test_rejects(before: int, after: int, samples: int) -> None:
    found, z = drop(before, after, samples), norm.ppf(0.98)
    assert literal_score(before, after, samples, found.low) == pytest.approx(z, abs=2e-3)
    assert literal_score(before, after, samples, found.high) == pytest.approx(-z, abs=2e-3)


@pytest.mark.parametrize("samples", [10, 100, 1000])
def test_without_discordant_samples_the_bounds_are_those_of_a_fraction_of_zero(samples: int) -> None:
    found = drop(0, 0, samples)
    assert found.value == 0.0
    assert found.high == pytest.approx(share(0, samples).high, rel=1e-6)
    assert found.low == pytest.approx(-found.high, rel=1e-6)


@settings(max_examples=200)
@given(counts=st.lists(st.integers(0, 400), min_size=3, max_size=3).filter(lambda counts: sum(counts) > 0))
def test_the_bounds_enclose_the_estimate_and_mirror_with_the_roles(counts: list[int]) -> None:
    before, after, rest = counts
    found, mirrored = drop(before, after, sum(counts)), drop(after, before, sum(counts))
    assert -1.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low < found.high
    assert found.low == pytest.approx(-mirrored.high, abs=1e-6)
    assert rest >= 0


@pytest.mark.parametrize(("hits", "samples"), [(0, 7), (7, 7), (1, 30), (13, 1000)])
def test_a_fraction_has_the_exact_bounds(hits: int, samples: int) -> None:
    wanted = binomtest(hits, samples).proportion_ci(0.9, method="exact")
    found = share(hits, samples)
    assert found.low == pytest.approx(wanted.low, abs=1e-9)
    assert found.high == pytest.approx(wanted.high, abs=1e-9)
    assert found.low <= hits / samples <= found.high


def test_impossible_counts_are_refused() -> None:
    for counts in ((1, 0, 0), (3, 3, 5), (-1, 0, 5)):
        with pytest.raises(ValueError, match="samples"):
            drop(*counts)


def test_mcnemar_is_the_sign_test_on_the_discordant_samples() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)


def test_a_limit_is_settled_only_by_a_bound() -> None:
    bounds = Bounds(value=0.01, low=0.005, high=0.02)
    assert settles(bounds, 0.02) == "pass"
    assert settles(bounds, 0.019) == "inconclusive"
    assert settles(bounds, 0.005) == "inconclusive"
    assert settles(bounds, 0.0049) == "fail"
    assert settles(bounds, 0.005, floor=True) == "pass"
    assert settles(bounds, 0.03, floor=True) == "fail"
    assert settles(bounds, 0.01, floor=True) == "inconclusive"


def test_a_limit_of_zero_is_compared_with_the_estimate_itself() -> None:
    assert settles(share(0, 10), 0.0) == "pass"
    assert settles(share(1, 1000), 0.0) == "fail"
    assert settles(share(10, 10), 1.0, floor=True) == "pass"
    assert settles(share(9, 10), 1.0, floor=True) == "fail"


@pytest.mark.parametrize(
    ("hits", "samples", "limit"), [(0, 100, 0.01), (2, 100, 0.01), (2, 100, 0.05), (30, 1000, 0.025)]
)
def test_the_reported_number_of_samples_settles_it(hits: int, samples: int, limit: float) -> None:
    def estimate(count: int) -> Bounds:
        return share(hits * count / samples, count)

    assert settles(estimate(samples), limit) == "inconclusive"
    count = needed(estimate, limit)
    assert settles(estimate(count), limit) != "inconclusive"
    assert settles(estimate(round(count * 0.85)), limit) == "inconclusive"


def test_no_number_of_samples_settles_a_value_at_its_limit() -> None:
    assert needed(lambda count: Bounds(value=0.01, low=0.01 - 1 / count, high=0.01 + 1 / count), 0.01) == 0


def verdicts(true_drop: float, churn: float, samples: int, limit: float) -> list[str]:
    """Return the verdicts of `RUNS` comparisons.

    A sample becomes wrong with probability `churn + true_drop`, and right with probability `churn`.
    """
    generator = np.random.default_rng(round(1e6 * true_drop) + samples)
    cells = [churn + true_drop, churn, 1.0 - 2.0 * churn - true_drop]
    return [
        settles(drop(int(before), int(after), samples), limit)
        for before, after, _ in generator.multinomial(samples, cells, size=RUNS)
    ]


@pytest.mark.parametrize(("samples", "churn"), list(itertools.product((100, 500, 5000), (0.0, 0.005, 0.03))))
@pytest.mark.parametrize("excess", [1.2, 2.0, 4.0])
def test_a_drop_beyond_the_limit_is_passed_in_at_most_5_percent(samples: int, churn: float, excess: float) -> None:
    found = verdicts(excess * 0.01, churn, samples, 0.01)
    assert found.count("pass") <= 0.05 * RUNS


@pytest.mark.parametrize(("samples", "churn"), list(itertools.product((100, 500, 5000), (0.0, 0.005, 0.03))))
@pytest.mark.parametrize("share_of_limit", [0.0, 0.5, 0.8])
def test_a_harmless_drop_is_failed_in_at_most_5_percent(samples: int, churn: float, share_of_limit: float) -> None:
    found = verdicts(share_of_limit * 0.01, churn, samples, 0.01)
    assert found.count("fail") <= 0.05 * RUNS


@pytest.mark.parametrize("samples", [60, 200, 1000])
@pytest.mark.parametrize("limit", [0.005, 0.01, 0.05])
@pytest.mark.parametrize("churn", [0.0, 0.002, 0.02, 0.1])
def test_at_the_limit_itself_either_error_is_made_in_at_most_5_percent(
    samples: int, limit: float, churn: float
) -> None:
    # Enumerated, not drawn: every table that occurs in more than one of 10^7 runs, with its probability.
    most = int(binom.ppf(1 - 1e-7, samples, churn + limit)), int(binom.ppf(1 - 1e-7, samples, churn))
    passed = failed = 0.0
    for after in range(most[1] + 1):
        chance = float(binom.pmf(after, samples, churn))
        rest = binom.pmf(np.arange(most[0] + 1), samples - after, (churn + limit) / (1.0 - churn)) * chance
        shown = [settles(drop(before, after, samples), limit) for before in range(min(most[0], samples - after) + 1)]
        passed += sum(float(rest[before]) for before, each in enumerate(shown) if each == "pass")
        failed += sum(float(rest[before]) for before, each in enumerate(shown) if each == "fail")
    assert passed <= 0.05
    assert failed <= 0.05


def test_enough_samples_settle_almost_every_run() -> None:
    assert verdicts(0.0, 0.002, 5000, 0.01).count("pass") >= 0.99 * RUNS
    assert verdicts(0.03, 0.002, 5000, 0.01).count("fail") >= 0.99 * RUNS


@pytest.mark.parametrize("samples", [100, 1000, 5000])
@pytest.mark.parametrize(("rate", "wrong"), [(0.012, "pass"), (0.02, "pass"), (0.0, "fail"), (0.008, "fail")])
def test_agreement_is_misjudged_in_at_most_5_percent(samples: int, rate: float, wrong: str) -> None:
    generator = np.random.default_rng(samples)
    found = [settles(share(int(hits), samples), 0.01) for hits in generator.binomial(samples, rate, size=RUNS)]
    assert found.count(wrong) <= 0.05 * RUNS


def labelled(before: int, after: int, samples: int) -> OutputDrift:
    both = samples - before - after
    counts = {"samples": samples, "agree": both, "both": both, "only_fp32": before, "only_candidate": after}
    values = {"accuracy_fp32": 100 * (both + before) / samples, "accuracy": 100 * (both + after) / samples, "top1": 0.0}
    return OutputDrift(output="logits", kind="scores", values=values, counts=counts)


def test_a_gate_says_how_many_samples_would_settle_it() -> None:
    (result,) = judge([labelled(0, 0, 100)], parse_gates("top1=1%"), 100)
    assert result.verdict == "inconclusive"
    assert result.needed == 300  # 299 = log(0.05) / log(1 - limit), rounded up
    assert "100 samples are too few to tell, about 300 would settle it" in result.reason
    (enough,) = judge([labelled(0, 0, 299)], parse_gates("top1=1%"), 299)
    assert enough.verdict == "pass"


def test_a_shown_drop_fails_with_its_bounds_and_mcnemar() -> None:
    (result,) = judge([labelled(40, 2, 1000)], parse_gates("top1=1%"), 1000)
    assert result.verdict == "fail"
    assert 1.0 < result.low < result.value < result.high
    assert "drops by 3.80 points" in result.reason
    assert "McNemar p 4.1e-10" in result.reason
