"""The verdict on several choices: its order, what is acceptable, and how often a wrong choice is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from trtopt.compare.gate import judge
from trtopt.compare.gates import gate
from trtopt.tune.margin import failure, looks
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


def test_no_choice_keeps_much_more_than_the_next_one() -> None:
    order = named(40)
    choices = ladder(order, order[8:16])
    assert [len(choice) for choice in choices] == [40, 36, 32, 24, 12, 9, 8]


@pytest.mark.parametrize(
    ("refused", "asked", "place", "why"),
    [
        ((), [4], 4, None),  # if the boldest is accepted, so are the safer ones
        ((4,), [4, 3], 3, 4),
        ((3, 4), [4, 3, 1, 2], 2, 3),
        ((2, 3, 4), [4, 3, 1, 2], 1, 2),
        ((1, 2, 3, 4), [4, 3, 1], 0, 1),
    ],
)
def test_the_two_boldest_are_asked_first_then_the_safest_up_to_the_first_that_is_refused(
    refused: tuple[int, ...], asked: list[int], place: int, why: int | None
) -> None:
    seen = []

    def refusal(number: int) -> GateResult | None:
        seen.append(number)
        return result("fail", f"gate {number}") if number in refused else None

    found, reason = boldest([0, 1, 2, 3, 4], refusal)
    assert (found, seen) == (place, asked)
    assert (reason.metric if reason else None) == (f"gate {why}" if why else None)


@pytest.mark.parametrize(("refused", "place"), [((), 1), ((1,), 0)])
def test_of_two_choices_only_the_bolder_one_is_asked(refused: tuple[int, ...], place: int) -> None:
    asked = []

    def refusal(number: int) -> GateResult | None:
        asked.append(number)
        return result("fail") if number in refused else None

    assert (boldest([0, 1], refusal)[0], asked) == (place, [1])


def test_a_single_choice_is_the_result_whether_it_is_refused_or_not() -> None:
    failed = result("fail")
    assert boldest([0], lambda _: None) == (0, None)
    assert boldest([0], lambda _: failed) == (0, failed)


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


SAMPLES, GROUPS, LIMIT, CANCELLED = 600, 8, 1.0, 0.1


def judged(differing: int, samples: int) -> Sequence[GateResult]:
    """Return the real results of the gate top1 for a number of samples that differ."""
    output = OutputDrift(
        output="y",
        kind="scores",
        values={"top1": 100.0 * (1 - differing / samples)},
        counts={"samples": samples, "agree": samples - differing, "chosen": 5},
    )
    return judge([output], [gate("top1", LIMIT)], samples, defaults=False)


def simulated(rng: np.random.Generator) -> tuple[float, int]:
    """Return, for the result of one search, the true percentage of samples that differ, and how many groups it keeps.

    Each group adds its own samples that differ; about half of the choices truly exceed the limit. A tenth of the
    samples that differ do not in a choice, as errors of several groups may cancel: so the choices are not nested.
    """
    rates = rng.dirichlet(np.ones(GROUPS)) * rng.uniform(0.002, 0.03)
    differs = rng.random((2, SAMPLES, GROUPS)) < rates  # on both halves: search and verdict
    seed = int(rng.integers(1 << 30))
    ceiling = judged(0, SAMPLES)

    def on(kept: Sequence[Group]) -> list[int]:
        names = {group.name for group in kept}
        return [i for i in range(GROUPS) if str(i) not in names]

    def refusal(half: int, kept: Sequence[Group]) -> GateResult | None:
        cancelled = np.random.default_rng([seed, half, *on(kept)]).random(SAMPLES) < CANCELLED
        differing = differs[half][:, on(kept)].any(axis=1) & ~cancelled

        def first(count: int) -> Sequence[GateResult]:
            return judged(int(differing[:count].sum()), count)

        found = failure(
            looks(SAMPLES),
            0.0,
            first,
            lambda results: unacceptable(results, ceiling),
            enough=SAMPLES * half,
            clear=4.0 if half else 1.0,
        )
        return found[0] if found else None

    def truth(kept: Sequence[Group]) -> float:
        return 100 * (1 - CANCELLED) * (1 - float(np.prod([1 - rates[i] for i in on(kept)])))

    if refusal(1, []) is None:
        return truth([]), 0
    order = sorted(named(GROUPS), key=lambda group: -rates[int(group.name)])
    kept = fewest(order, lambda kept: refusal(0, kept) is None)
    assert kept is not None
    # The search adds a bolder choice that it refused itself; here it is any.
    choices = [*ladder(order, kept), *([kept[1:]] if kept else [])]
    place, _ = boldest(choices, lambda each: refusal(1, each))
    return truth(choices[place]), len(choices[place])


def test_at_most_one_result_in_twenty_is_reported_as_passing_and_truly_exceeds_the_limit() -> None:
    rng = np.random.default_rng(5)
    results = [simulated(rng) for _ in range(1000)]
    assert sum(truth > LIMIT for truth, _ in results) <= 50
    assert sum(kept < GROUPS for _, kept in results) > 600  # the search is not merely timid
