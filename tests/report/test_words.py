"""Numbers and verdicts in words."""

from __future__ import annotations

import math

import pytest
from report.reports import FAILED, PASSED, UNCHECKED

from trtopt.compare.metrics import METRICS
from trtopt.report import words
from trtopt.types import Report


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (PASSED, "PASS: 1 of 1 gates hold"),
        (FAILED, "FAIL: boxes:0: sqnr; equal"),
        (UNCHECKED, "UNCHECKED: no comparison was asked for"),
    ],
)
def test_the_verdict_is_a_sentence(report: Report, sentence: str) -> None:
    assert words.verdict(report) == sentence


def test_every_metric_has_a_label() -> None:
    assert words.LABELS.keys() == METRICS.keys()


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("top1", 99.0, "99.00 %"),
        ("sqnr", 32.555, "32.55 dB"),
        ("sqnr", math.inf, "identical"),
        ("sqnr", -math.inf, "no signal"),
        ("cosine", math.nan, "nan"),
        ("rmse", 0.00012345678, "0.00012346"),
    ],
)
def test_numbers_carry_their_unit(metric: str, value: float, text: str) -> None:
    assert words.number(metric, value) == text
