"""Margins of the default gates on few samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from trtopt.data.dataset import Dataset, first, grouped, scattered
from trtopt.tune.margin import failure, first_unsafe, looks
from trtopt.types import GateResult, Verdict


def result(metric: str, value: float, limit: float, verdict: Verdict = "pass") -> GateResult:
    return GateResult(output="y", metric=metric, value=value, limit=limit, verdict=verdict, reason="", default=True)


@pytest.mark.parametrize(
    ("metric", "limit", "below", "above"),
    [
        ("sqnr_min", 8.0, 9.9, 10.1),
        ("cosine", 0.99, 0.9936, 0.9938),
        ("r2", 0.8, 0.87, 0.88),
        ("miou", 98.0, 98.7, 98.8),
    ],
)
def test_two_decibels_less_error_than_the_limit_allows_are_safe(
    metric: str, limit: float, below: float, above: float
) -> None:
    assert first_unsafe([result(metric, below, limit)], 2.0) is not None
    assert first_unsafe([result(metric, above, limit)], 2.0) is None


def test_a_gate_that_failed_is_unsafe_whatever_its_metric() -> None:
    passed, failed = result("recall", 90.0, 80.0), result("recall", 10.0, 80.0, "fail")
    assert first_unsafe([passed, failed], 2.0) is failed


def test_too_few_samples_to_tell_are_safe() -> None:
    assert first_unsafe([result("top1", 2.0, 1.0, "inconclusive")], 2.0) is None


def test_the_metric_of_the_worst_sample_needs_more_margin_where_there_is_doubt() -> None:
    assert first_unsafe([result("sqnr", 13.0, 10.0)], 0.5, doubt=0.5) is None
    assert first_unsafe([result("sqnr_min", 13.0, 10.0)], 0.5, doubt=0.5) is not None


def asked(values: Sequence[float], *, enough: int = 0) -> tuple[list[int], int | None]:
    """Return on how many samples a choice was judged, and on how many it failed, from its SQNR at each look."""
    counts: list[int] = []

    def judge(count: int) -> Sequence[GateResult]:
        counts.append(count)
        value = values[len(counts) - 1]
        return [result("sqnr", value, 20.0, "pass" if value >= 20.0 else "fail")]

    found = failure(looks(40), 0.5, judge, enough=enough)
    return counts, found[1] if found else None


def test_what_holds_or_fails_clearly_is_settled_on_few_samples() -> None:
    assert asked([26.0]) == ([8], None)
    assert asked([18.0]) == ([8], 8)


def test_what_is_near_a_limit_is_judged_on_more_samples_until_it_is_clear() -> None:
    assert asked([20.4, 20.4, 20.4, 20.6]) == ([8, 16, 32, 40], None)
    assert asked([20.4, 20.4, 20.4, 20.4]) == ([8, 16, 32, 40], 40)
    assert asked([20.4, 22.5]) == ([8, 16], None)


def test_a_verdict_may_refuse_on_few_samples_but_accepts_on_all_only() -> None:
    assert asked([60.0] * 4, enough=40) == ([8, 16, 32, 40], None)
    assert asked([18.0], enough=40) == ([8], 8)


def test_a_verdict_refuses_on_few_samples_only_what_is_clearly_worse() -> None:
    def judge(count: int) -> Sequence[GateResult]:
        return [result("sqnr", 19.0 if count < 40 else 20.0, 20.0)]

    assert failure(looks(40), 0.0, judge, enough=40) is not None
    assert failure(looks(40), 0.0, judge, enough=40, clear=4.0) is None


def test_what_more_samples_might_change_needs_all_of_them() -> None:
    counts: list[int] = []

    def judge(count: int) -> Sequence[GateResult]:
        counts.append(count)
        return [result("top1", 0.0, 1.0, "inconclusive")]

    found = failure(looks(20), 0.5, judge, lambda results: results[0])
    assert (counts, found and found[1]) == ([8, 16, 20], 20)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 60, 284])
def test_the_first_samples_of_a_scattered_set_are_spread_over_it(count: int) -> None:
    found = scattered(numbers(count))
    order = [int(found.load(i)["x"][0]) for i in range(count)]
    assert sorted(order) == list(range(count))
    assert list(found.ids) == [str(i) for i in order]
    for few in (look.count for look in looks(count) if 8 <= look.count < count):
        assert max(np.diff([0, *sorted(order[:few]), count])) <= 4 * count / few


@pytest.mark.parametrize("size", [3, 8, 100])
@pytest.mark.parametrize("count", [1, 13, 60])
def test_samples_that_are_fed_in_groups_are_looked_at_in_the_same_order(count: int, size: int) -> None:
    alone, together = scattered(numbers(count)), scattered(grouped(numbers(count), size))
    for few in (look.count for look in looks(count)):
        assert counted(first(together, few)) == list(alone.ids[:few])


def test_a_look_at_more_samples_repeats_the_groups_of_the_one_before() -> None:
    samples = grouped(numbers(60), 12)
    before, after = first(samples, 16), first(samples, 32)
    assert [before.load(i)["x"].tolist() for i in range(2)] == [after.load(i)["x"].tolist() for i in range(2)]
    assert before.digest != after.digest


def numbers(count: int) -> Dataset:
    """Return samples that are numbers, and are named after them."""
    ids = tuple(map(str, range(count)))
    return Dataset(source="s", digest="d", ids=ids, load=lambda i: {"x": np.array([i])}, batched=True)


def counted(dataset: Dataset) -> list[str]:
    """Return the samples that count in the feeds of groups, in order."""
    assert dataset.groups is not None
    names = []
    for feed in range(len(dataset)):
        members = dataset.groups.members(feed)
        names += [str(number) for number in dataset.load(feed)["x"][: len(members)]]
        assert [dataset.groups.ids[i] for i in members] == names[-len(members) :]
    return names
