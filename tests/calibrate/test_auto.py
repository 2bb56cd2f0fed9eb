"""Which method `auto` chooses, by the error that each one's network was measured to have."""

from __future__ import annotations

import math

import pytest

from trtopt.calibrate.auto import FALLBACK, choose
from trtopt.types import CalibrationTable

TABLES = {name: CalibrationTable(method=name, scales={}) for name in ("entropy", "minmax", FALLBACK)}


def test_the_least_error_wins_and_every_method_s_decibels_are_kept() -> None:
    made = choose(TABLES, lambda table: {"entropy": 0.1, "minmax": 0.001, FALLBACK: 0.01}[table.method])
    assert made.method == "minmax"
    assert made.tried == pytest.approx({"entropy": 10.0, "minmax": 30.0, FALLBACK: 20.0})


def test_a_method_that_could_not_be_tried_is_no_candidate() -> None:
    made = choose(TABLES, lambda table: {"entropy": math.inf, "minmax": 2.0, FALLBACK: math.inf}[table.method])
    assert (made.method, list(made.tried)) == ("minmax", ["minmax"])


def test_where_none_could_be_tried_it_is_the_fallback() -> None:
    made = choose(TABLES, lambda _: math.inf)
    assert (made.method, made.tried) == (FALLBACK, {})


def test_where_all_are_equal_it_is_the_fallback_and_no_error_is_a_finite_number_of_decibels() -> None:
    made = choose(TABLES, lambda _: 0.0)
    assert (made.method, made.tried["entropy"]) == (FALLBACK, 300.0)
