"""Exhausted memory halves the batch, and the outputs stay those of the whole one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from trtopt.data.dataset import Dataset
from trtopt.engine.halving import Runner, halving
from trtopt.errors import OutOfMemoryError
from trtopt.events import Event, Warned

Array = np.ndarray
X = np.arange(22, dtype=np.float32).reshape(11, 2)


class Narrow:
    """Twice its input, or its sum, with memory for `room` samples."""

    where = "here"

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(feed["x"]))
        if self.sizes[-1] > self.room:
            raise OutOfMemoryError("memory is exhausted")
        return {"y": feed["x"] * 2}


class Summing(Narrow):
    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": super().run(feed)["y"].sum(axis=0)}


def made(runner: Runner, *, batched: bool = True) -> tuple[Runner, list[Event]]:
    events: list[Event] = []
    data = Dataset(source="", digest="", ids=(), load=lambda i: {}, batched=batched)
    return halving(runner, data, events.append), events


def test_nothing_changes_where_memory_suffices() -> None:
    runner, events = made(narrow := Narrow(11))
    assert np.array_equal(runner.run({"x": X})["y"], X * 2)
    assert (runner.where, narrow.sizes, events) == ("here", [11], [])


def test_outputs_are_those_of_the_whole_batch_and_the_notice_comes_once_a_halving() -> None:
    runner, events = made(narrow := Narrow(3))
    for _ in range(2):
        assert np.array_equal(runner.run({"x": X})["y"], X * 2)
    assert events == [
        Warned("the memory does not hold 11 samples a run: 5 from now on"),
        Warned("the memory does not hold 5 samples a run: 2 from now on"),
    ]
    assert narrow.sizes[-6:] == [2, 2, 2, 2, 2, 1]


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    runner, _ = made(Narrow(0))
    with pytest.raises(OutOfMemoryError, match="memory is exhausted"):
        runner.run({"x": X})


def test_outputs_that_mix_samples_are_an_error_and_not_wrong_numbers() -> None:
    runner, _ = made(Summing(8))
    with pytest.raises(OutOfMemoryError, match="output y has not one row for each"):
        runner.run({"x": X})


def test_samples_that_are_not_joined_are_not_taken_apart() -> None:
    runner, events = made(Narrow(3), batched=False)
    with pytest.raises(OutOfMemoryError):
        runner.run({"x": X})
    assert events == []
