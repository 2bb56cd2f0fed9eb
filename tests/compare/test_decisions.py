"""Decisions by class: which group has the clearest loss, and its counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.compare.measures.decisions import Decisions, lost


def counted(*samples: tuple[list[int], list[int]]) -> Decisions:
    """Return the decisions of samples, each given by FP32's classes and the candidate's."""
    decisions = Decisions()
    for reference, candidate in samples:
        x, y = np.array(reference, np.intp), np.array(candidate, np.intp)
        decisions.add(x, x == y)
    return decisions


def test_one_class_has_no_recall() -> None:
    decisions = counted(([3, 3], [3, 0]))
    assert (decisions.values(), decisions.counts(), decisions.loss) == ({}, {}, 0.0)


def test_the_class_with_the_clearest_loss_is_named_with_its_counts() -> None:
    decisions = counted(*[([0, 0, 7], [0, 0, 0])] * 5, ([0, 2], [0, 2]))
    assert decisions.values() == {"recall": 0.0}
    assert decisions.counts() == {"decisions": 5, "kept": 0, "having": 5, "groups": 4, "class": 7}


def test_classes_that_lose_a_little_each_lose_much_together() -> None:
    decisions = counted(*[([0, 0, 0, 1 + i], [0] * 4) for i in range(20)])
    assert decisions.values() == {"recall": 0.0}
    assert decisions.counts() == {"decisions": 20, "kept": 0, "having": 20, "groups": 22}  # without a class


def test_many_decisions_of_one_sample_are_no_more_evidence_than_one() -> None:
    once, often = counted(([0, 1], [0, 0])), counted(([0] + [1] * 900, [0] * 901))
    assert 0 < once.loss == often.loss < 0.05


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=60))
def test_single_decisions_are_counted_like_samples_of_one(pairs: list[tuple[int, int]]) -> None:
    one_by_one = counted(*[([x], [y]) for x, y in pairs])
    x, y = (np.array(side, np.intp) for side in zip(*pairs, strict=True))
    together = Decisions()
    together.add_single(x, x == y)
    assert together.values() == one_by_one.values()
    assert together.counts() == one_by_one.counts()


def test_contradicting_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="6 of 5 decisions"):
        lost(5, 6, 5, 2)


@pytest.mark.parametrize("groups", [1, 10, 1000])
def test_a_loss_below_the_limit_rarely_fails_in_any_of_many_classes(groups: int) -> None:
    """The bounds of all classes hold together: at most 5 % of healthy candidates have one beyond the limit of 20 %."""
    random = np.random.default_rng(groups)
    kept = 20 - random.binomial(20, 0.19, (200, groups))
    shown = {k: lost(20, k, 20, groups).low > 0.2 for k in range(21)}
    assert np.mean([any(shown[k] for k in row) for row in kept.tolist()]) <= 0.08
