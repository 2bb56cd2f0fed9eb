"""The search for the nodes that make an engine wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtopt.stages.fault import culprits


def engine(wrong: set[str], calls: list[int]) -> Callable[[Sequence[str]], bool]:
    """Return `right` of an engine that is wrong unless all the `wrong` nodes are kept."""

    def right(kept: Sequence[str]) -> bool:
        calls.append(len(kept))
        return wrong <= set(kept)

    return right


@given(st.integers(1, 60), st.data())
def test_the_wrong_nodes_are_found_and_no_others(count: int, data: st.DataObject) -> None:
    names = [f"n{i}" for i in range(count)]
    wrong = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    found = culprits(names, engine(wrong, []), most=100)
    assert found is not None
    assert set(found) == wrong


def test_one_wrong_node_of_64_takes_few_builds() -> None:
    calls: list[int] = []
    assert culprits([f"n{i}" for i in range(64)], engine({"n41"}, calls), most=24) == ["n41"]
    assert len(calls) <= 8


def test_nothing_is_found_if_the_engine_is_wrong_for_another_reason() -> None:
    assert culprits(["a", "b"], lambda kept: False, most=24) is None
    assert culprits([], lambda kept: True, most=24) is None


@pytest.mark.parametrize("most", range(1, 12))
def test_with_few_builds_the_result_still_makes_the_engine_right(most: int) -> None:
    calls: list[int] = []
    right = engine({"n3", "n30"}, calls)
    found = culprits([f"n{i}" for i in range(40)], right, most=most)
    assert len(calls) <= most + 1
    assert found is not None
    assert right(found)
