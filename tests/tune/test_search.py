"""The search for the groups to keep, on networks whose errors are known numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hypothesis import given
from hypothesis import strategies as st

from trtopt.tune.search import Costs, Group, confirmed, fewest, negligible, ranked

SAVINGS = st.just(0.0) | st.floats(1.0, 100.0)
ERRORS = st.lists(st.tuples(st.floats(0.0, 1.0, allow_nan=False), SAVINGS), min_size=1, max_size=24)


def named(errors: Sequence[tuple[float, float]]) -> tuple[list[Group], dict[str, float]]:
    groups = [Group(name=str(i), nodes=(str(i),), saving=saving) for i, (_, saving) in enumerate(errors)]
    return groups, {group.name: error for group, (error, _) in zip(groups, errors, strict=True)}


@given(errors=ERRORS, limit=st.floats(0.0, 3.0))
def test_what_is_kept_is_enough_and_none_of_it_can_be_quantized_again(
    errors: list[tuple[float, float]], limit: float
) -> None:
    groups, added = named(errors)
    asked = 0

    def holds(kept: Sequence[Group]) -> bool:
        nonlocal asked
        asked += 1
        names = {group.name for group in kept}
        return sum(error for name, error in added.items() if name not in names) <= limit

    kept = fewest(ranked(groups, added), holds)
    assert kept is not None
    trials = asked
    assert holds(kept)
    assert not any(holds([each for each in kept if each is not group]) for group in kept)
    assert trials <= 3 + len(groups).bit_length() + len(groups)


def test_groups_that_save_too_little_for_a_trial_are_quantized_again_together() -> None:
    groups, added = named([(2.0, 1000.0), *((0.01 * i, 0.1) for i in range(40))])
    asked: list[int] = []

    def holds(kept: Sequence[Group]) -> bool:
        asked.append(len(kept))
        names = {group.name for group in kept}
        return sum(error for name, error in added.items() if name not in names) <= 1.0

    kept = fewest(ranked(groups, added), holds, least=1.0)
    assert kept is not None
    quantized = {group.name for group in groups} - {group.name for group in kept}
    assert quantized == {str(i) for i in range(1, 11)}  # a quarter, with the smallest errors
    assert len(asked) <= 13


def test_with_few_samples_every_trial_needs_all_of_them() -> None:
    groups, added = named([(1.0, 1.0)] * 8)
    asked: list[int] = []

    def refusal(kept: Sequence[Group], enough: int) -> int | None:
        asked.append(enough)
        return None if len(kept) >= 3 else 8

    confirmed(ranked(groups, added), refusal, 30)
    assert set(asked) == {30}
    assert negligible(groups, 30) > 0.0 == negligible(groups, 33)


class Rows(Costs):
    """Groups in a row, of which each costs as much as a border with a quantized neighbour."""

    def of(self, group: Group, kept: Collection[str]) -> float:
        beside = sum(str(int(group.name) + step) in kept for step in (-1, 1))
        return 1.0 + 2 - 2 * beside

    def islands(self, kept: Sequence[Group]) -> list[list[Group]]:
        found: list[list[Group]] = []
        for group in sorted(kept, key=lambda each: int(each.name)):
            if found and int(found[-1][-1].name) == int(group.name) - 1:
                found[-1].append(group)
            else:
                found.append([group])
        return found


def test_what_costs_little_beside_kept_groups_comes_before_what_needs_borders_of_its_own() -> None:
    groups, errors = named([(1.0, 1.0), (0.5, 1.0), (0.6, 1.0), (0.1, 1.0)])
    assert [group.name for group in ranked(groups, errors, Rows())] == ["0", "1", "2", "3"]
    assert [group.name for group in ranked(groups, errors)] == ["0", "2", "1", "3"]


def test_an_island_is_quantized_again_as_a_whole_where_none_of_its_groups_would_be_alone() -> None:
    groups, _ = named([(1.0, 1.0)] * 7)
    asked: list[set[int]] = []

    def holds(kept: Sequence[Group]) -> bool:
        asked.append({int(group.name) for group in kept})
        return 6 in asked[-1]

    order = [groups[number] for number in (0, 1, 2, 4, 6, 3, 5)]
    kept = fewest(order, holds, costs=Rows())
    assert kept is not None
    assert [group.name for group in kept] == ["6"]
    assert {4, 6} in asked


@given(needed=st.integers(0, 15))
def test_a_part_of_a_long_island_is_quantized_again_where_no_group_of_it_would_be_alone(needed: int) -> None:
    groups, _ = named([(1.0, 1.0)] * 16)
    asked = 0

    def holds(kept: Sequence[Group]) -> bool:
        nonlocal asked
        asked += 1
        return needed in {int(group.name) for group in kept}

    order = [group for group in groups if int(group.name) != needed] + [groups[needed]]
    kept = fewest(order, holds, costs=Rows())
    assert kept is not None
    assert [int(group.name) for group in kept] == [needed]
    assert asked <= 3 + 4 + 2 * 16


class Uneven(Rows):
    """Groups in a row with expensive borders, except behind every third."""

    def of(self, group: Group, kept: Collection[str]) -> float:
        number = int(group.name)
        borders = ((number - 1, number), (number, number + 1))
        costs = {(a, b): 0.5 if b % 3 == 0 else 9.0 for a, b in borders}
        return 1.0 + sum(
            cost * (1 if str(a if b == number else b) not in kept else -1) for (a, b), cost in costs.items()
        )


def test_an_island_is_divided_where_a_border_costs_least() -> None:
    groups, _ = named([(1.0, 1.0)] * 9)
    asked: list[set[int]] = []

    def holds(kept: Sequence[Group]) -> bool:
        asked.append({int(group.name) for group in kept})
        return {3, 5} <= asked[-1]

    kept = fewest([*groups[:3], *groups[6:], *groups[3:6]], holds, costs=Uneven())
    assert kept is not None
    assert [int(group.name) for group in kept] == [3, 4, 5]
    assert {3, 4, 5, 6, 7, 8} in asked or {0, 1, 2, 3, 4, 5} in asked


def test_a_group_between_kept_ones_is_not_quantized_again() -> None:
    groups, _ = named([(1.0, 1.0)] * 4)
    kept = fewest(groups, lambda kept: {"0", "2"} <= {group.name for group in kept}, costs=Rows())
    assert kept is not None
    assert [group.name for group in kept] == ["0", "1", "2"]


def test_a_group_that_saves_nothing_is_quantized_again_if_it_can_be() -> None:
    groups, added = named([(0.5, 0.0), (0.4, 0.0), (0.3, 1.0), (0.1, 1.0)])
    kept = fewest(ranked(groups, added), lambda kept: "2" in {group.name for group in kept})
    assert kept is not None
    assert [group.name for group in kept] == ["2"]


def test_a_group_that_is_slower_when_quantized_is_quantized_again_if_it_can_be() -> None:
    groups, _ = named([(0.5, -1.0), (0.4, 1.0), (0.3, 2.0)])
    kept = fewest(groups, lambda kept: "1" in {group.name for group in kept})
    assert kept is not None
    assert [group.name for group in kept] == ["1"]


def test_islands_of_small_groups_get_no_trial_of_their_own() -> None:
    groups, _ = named([(1.0, 100.0), *((0.1, 0.01) for _ in range(8))])
    asked: list[int] = []

    def holds(kept: Sequence[Group]) -> bool:
        asked.append(len(kept))
        return {"0", "8"} <= {group.name for group in kept}

    fewest(groups, holds, least=1.0, costs=Rows())
    assert len(asked) <= 3 + 4 + 1 + 4


def test_a_small_group_between_kept_ones_stays_kept() -> None:
    groups, _ = named([(1.0, 1.0), (0.1, 0.01), (1.0, 1.0)])
    kept = fewest(groups, lambda kept: {"0", "2"} <= {group.name for group in kept}, least=0.1, costs=Rows())
    assert kept is not None
    assert [group.name for group in kept] == ["0", "1", "2"]


def test_a_network_that_holds_as_it_is_costs_one_trial() -> None:
    groups, added = named([(1.0, 1.0)] * 30)
    asked: list[int] = []

    def holds(kept: Sequence[Group]) -> bool:
        asked.append(len(kept))
        return True

    assert fewest(ranked(groups, added), holds) == []
    assert asked == [0]


def test_a_network_that_holds_with_no_choice_has_no_answer() -> None:
    groups, added = named([(1.0, 1.0), (0.5, 1.0)])
    assert fewest(ranked(groups, added), lambda kept: False) is None


def test_of_two_equal_errors_the_one_that_saves_less_is_kept() -> None:
    groups, added = named([(0.5, 100.0), (0.5, 1.0)])
    kept = fewest(ranked(groups, added), lambda kept: bool(kept))
    assert kept is not None
    assert [group.saving for group in kept] == [1.0]


SAMPLES = 64


@given(errors=ERRORS, limit=st.floats(0.0, 3.0), doubt=st.floats(0.0, 1.0))
def test_a_result_that_holds_on_few_samples_only_is_widened_until_it_holds_on_all(
    errors: list[tuple[float, float]], limit: float, doubt: float
) -> None:
    groups, added = named(errors)
    refused: dict[frozenset[str], int] = {}

    def refusal(kept: Sequence[Group], enough: int) -> int | None:
        names = frozenset(group.name for group in kept)
        error = sum(error for name, error in added.items() if name not in names)
        for count in (8, 16, 32, SAMPLES):
            if error > limit + doubt * (SAMPLES / count - 1):
                refused[names] = count
            elif count < max(enough, 8) and names not in refused:
                continue
            return refused.get(names)
        return None

    kept = confirmed(ranked(groups, added), refusal, SAMPLES)
    assert kept is not None
    assert refusal(kept, SAMPLES) is None
    assert sum(error for name, error in added.items() if name not in {group.name for group in kept}) <= limit


def test_a_result_that_holds_on_all_samples_is_asked_about_once_more() -> None:
    groups, added = named([(3.0, 1.0), (2.0, 1.0)])
    asked: list[tuple[int, int]] = []

    def refusal(kept: Sequence[Group], enough: int) -> int | None:
        asked.append((len(kept), enough))
        return None if kept else 8

    assert len(confirmed(ranked(groups, added), refusal, SAMPLES) or ()) == 1
    assert [each for each in asked if each[1]] == [(1, SAMPLES)]
