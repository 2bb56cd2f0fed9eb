"""Margins of the default gates on few samples."""

from __future__ import annotations

import pytest

from trtopt.tune.margin import first_unsafe
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
