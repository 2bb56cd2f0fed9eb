"""The verdict on several choices: its order, what is acceptable, and how often a wrong choice is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from trtopt.compare.gate import judge
from trtopt.compare.gates import gate
from trtopt.tune.search import Group, fewest
from trtopt.tune.sequence import boldest, ladder, unacceptable
from trtopt.types import GateResult, OutputDrift, Verdict


def named(count: int) -> list[Group]:
    return [Group(name=str(i), nodes=(str(i),), saving=1.0) for i in range(count)]


def result(verdict: Verdict, metric: str = "top1") -> GateResult:
    return GateResult(output="y", metric=metric, value=0.0, limit=1.0, verdict=verdict, reason="")


def test_the_choices_go_from_everything_kept_to_the_boldest_and_each_keeps_less() -> None:
    order = named(12)
    choices = ladder(order, order[2:5])
    assert set(choices[0]) == set(order)
    assert choices[-1] == order[2:5]
    for wider, narrower in pairwise(choices):
        assert set(narrower) < set(wider)


def test_the_first_choice_that_is_refused_ends_the_sequence() -> None:
    asked = []

    def accepts(number: int) -> bool:
        asked.append(number)
        return number != 2

    assert boldest([0, 1, 2, 3], accepts) == 2
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    ("reference", "found", "acceptable"),
    [
        ("pass", "pass", True),
        ("pass", "inconclusive", False),
        ("inconclusive", "inconclusive", True),
        ("inconclusive", "pass", True),
        ("inconclusive", "fail", False),
    ],
)
def test_each_gate_must_be_as_good_as_without_quantization(
    reference: Verdict, found: Verdict, acceptable: bool
) -> None:
    assert (unacceptable([result(found)], [result(reference)]) is None) == acceptable


SAMPLES, GROUPS, LIMIT = 600, 8, 1.0


def judged(differing: int, samples: int) -> Sequence[GateResult]:
    """Return the real results of the gate top1 for a number of samples that differ."""
    output = OutputDrift(
        output="y",
        kind="scores",
        values={"top1": 100.0 * (1 - differing / samples)},
        counts={"samples": samples, "agree": samples - differing, "chosen": 10},
    )
    return judge([output], [gate("top1", LIMIT)], samples, defaults=False)


def simulated(rng: np.random.Generator) -> tuple[float, int]:
    """Return, for the result of one search, the true percentage of samples that differ, and how many groups it keeps.

    Each group adds its own samples that differ; about half of the choices truly exceed the limit.
    """
    rates = rng.dirichlet(np.ones(GROUPS)) * rng.uniform(0.002, 0.03)
    differs = rng.random((2, SAMPLES, GROUPS)) < rates  # on both halves: search and verdict
    reference = judged(0, SAMPLES)

    def acceptable(half: int, kept: Sequence[Group]) -> bool:
        names = {group.name for group in kept}
        on = [i for i in range(GROUPS) if str(i) not in names]
        return unacceptable(judged(int(differs[half][:, on].any(axis=1).sum()), SAMPLES), reference) is None

    order = sorted(named(GROUPS), key=lambda group: -rates[int(group.name)])
    kept = fewest(order, lambda kept: acceptable(0, kept))
    assert kept is not None
    choices = ladder(order, kept)
    accepted = boldest(choices, lambda each: acceptable(1, each))
    chosen = choices[max(accepted - 1, 0)]
    names = {group.name for group in chosen}
    return 100 * (1 - float(np.prod([1 - rate for i, rate in enumerate(rates) if str(i) not in names]))), len(chosen)


def test_at_most_one_result_in_twenty_is_reported_as_passing_and_truly_exceeds_the_limit() -> None:
    rng = np.random.default_rng(5)
    results = [simulated(rng) for _ in range(1000)]
    assert sum(truth > LIMIT for truth, _ in results) <= 50
    assert sum(kept < GROUPS for _, kept in results) > 600  # the search is not merely timid
