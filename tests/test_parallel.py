from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from trtopt.calibrate import observe
from trtopt.parallel import cores, in_order


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_the_order_of_the_items(workers: int) -> None:
    assert list(in_order(lambda i: i * i, range(50), workers)) == [i * i for i in range(50)]


def test_items_are_worked_on_at_once() -> None:
    all_there = threading.Barrier(3, timeout=10)  # raises an error unless three threads wait at the same time
    assert len(list(in_order(lambda _: all_there.wait(), range(3), 3))) == 3


@pytest.mark.parametrize("workers", [1, 3])
def test_no_item_is_taken_long_before_it_is_needed(workers: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    results = in_order(lambda i: i, items(), workers)
    assert next(results) == 0
    assert len(taken) <= workers + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_raised_after_the_results_before_it(workers: int) -> None:
    results = in_order(lambda i: 1 // (i - 2), range(5), workers)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS and Windows
    assert cores() == (os.cpu_count() or 1)


def test_peak_memory_is_left_out_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MiB" in observe._peak()
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    assert observe._peak() == ""
