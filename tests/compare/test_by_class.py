"""Tests of the accuracy by class, compared with counting by hand."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trtopt.compare.measures.by_class import MOST_CLASSES, classification

choices = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=60)


@given(choices)
def test_every_count_is_that_of_the_samples(rows: list[tuple[int, int, int]]) -> None:
    labels, fp32, candidate = (list(column) for column in zip(*rows, strict=True))
    found = classification(labels, fp32, candidate, {})
    assert [row.index for row in found.classes] == sorted(set(labels))
    for row in found.classes:
        of_class = [each for each in rows if each[0] == row.index]
        assert row.samples == len(of_class)
        assert row.fp32 == sum(label == x for label, x, _ in of_class)
        assert row.candidate == sum(label == y for label, _, y in of_class)
    wrong = Counter((label, y) for label, _, y in rows if label != y)
    assert {(c.label, c.chosen): c.candidate for c in found.confusions if c.candidate} == wrong
    counts = [c.candidate for c in found.confusions]
    assert counts == sorted(counts, reverse=True)


def test_of_many_classes_those_with_the_largest_losses_are_kept() -> None:
    classes = range(MOST_CLASSES + 50)
    lost = {3, 70, 149}
    found = classification(
        list(classes), list(classes), [0 if index in lost else index for index in classes], {3: "cat", 0: "dog"}
    )
    assert found.found == len(classes)
    assert len(found.classes) == MOST_CLASSES
    assert lost <= {row.index for row in found.classes}
    assert next(row.name for row in found.classes if row.index == 3) == "cat"
    assert {(c.label, c.chosen) for c in found.confusions} == {(index, 0) for index in lost}


def test_classes_that_were_only_chosen_have_their_names() -> None:
    found = classification([1, 1], [1, 1], [1, 7], {7: "seven", 8: "eight"})
    assert found.names == {"7": "seven"}
