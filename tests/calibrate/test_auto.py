"""The method that `auto` chooses, given the measured output error of each candidate."""

from __future__ import annotations

import math

import pytest

from trtopt.calibrate.auto import FALLBACK, choose
from trtopt.types import CalibrationTable

TABLES = {name: CalibrationTable(method=name, scales={}) for name in ("entropy", "minmax", FALLBACK)}


def test_the_method_with_the_smallest_error_is_chosen_and_the_sqnr_of_all_is_recorded() -> None:
    chosen = choose(TABLES, lambda table: {"entropy": 0.1, "minmax": 0.001, FALLBACK: 0.01}[table.method])
    assert chosen.method == "minmax"
    assert chosen.tried == pytest.approx({"entropy": 10.0, "minmax": 30.0, FALLBACK: 20.0})


def test_a_method_that_cannot_be_evaluated_is_not_chosen() -> None:
    chosen = choose(TABLES, lambda table: {"entropy": math.inf, "minmax": 2.0, FALLBACK: math.inf}[table.method])
    assert (chosen.method, list(chosen.tried)) == ("minmax", ["minmax"])


def test_the_fallback_is_chosen_if_no_method_can_be_evaluated() -> None:
    chosen = choose(TABLES, lambda _: math.inf)
    assert (chosen.method, chosen.tried) == (FALLBACK, {})


def test_the_fallback_wins_a_tie_and_an_error_of_zero_has_a_finite_sqnr() -> None:
    chosen = choose(TABLES, lambda _: 0.0)
    assert (chosen.method, chosen.tried["entropy"]) == (FALLBACK, 300.0)
