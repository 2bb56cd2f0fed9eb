"""Tests of scales and ticks: round, in order, and enclosing the data, for any numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtopt.report.page.svg import Scale, compact, linear, logarithmic, round_ticks

SIZES = st.floats(1e-30, 1e30)


@given(st.floats(-1e30, 1e30), SIZES)
def test_ticks_ascend_and_enclose_the_values(low: float, span: float) -> None:
    high = low + span
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(before < after for before, after in itertools.pairwise(ticks))
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-9 * step
    assert ticks[-1] >= high - 1e-9 * step or high - low <= 1e-9 * max(abs(low), abs(high))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 0.97, [0, 0.2, 0.4, 0.6, 0.8, 1]), (9, 61, [0, 20, 40, 60, 80]), (3, 3, [3, 4]), (0, 0, [0, 0.2]),
     (-12, 40, [-20, 0, 20, 40]), (0, 3e-13, [0, 1e-13, 2e-13, 3e-13])],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert round_ticks(low, high)[: len(ticks)] == ticks


@given(SIZES, st.floats(1, 1e12))
def test_logarithmic_ticks_ascend_and_enclose_the_values(low: float, ratio: float) -> None:
    axis = logarithmic(low, low * ratio, 0, 100)
    assert all(before < after for before, after in itertools.pairwise(axis.ticks))
    assert 1 <= len(axis.ticks) <= 8
    assert axis.scale.low <= low * 1.002
    assert axis.scale.high >= low * ratio * 0.998
    assert all(axis.scale.low <= tick <= axis.scale.high for tick in axis.ticks)


def test_a_scale_maps_its_ends_on_its_ends_and_what_is_beyond_on_the_nearer() -> None:
    scale = Scale(10, 20, 100, 0)
    assert [scale.at(value) for value in (10, 15, 20, 5, 99, float("inf"), float("-inf"))] == [
        100,
        50,
        0,
        100,
        0,
        0,
        100,
    ]
    log = Scale(1, 100, 0, 10, log=True)
    assert [log.at(value) for value in (1, 10, 100, 0, -3)] == [0, 5, 10, 0, 0]


def test_labels_are_short() -> None:
    assert [compact(value) for value in (0.01, 20, 1500, 2.5e6, 3e9)] == ["0.01", "20", "1.5k", "2.5M", "3G"]
    assert list(linear(0, 0.3, 0, 1).labels) == ["0", "0.1", "0.2", "0.3"]
