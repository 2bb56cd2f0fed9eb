"""Which choices of the search are judged: the best one, and one that only lacks the margin."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from trtopt.data.dataset import Dataset
from trtopt.plan import TunePlan
from trtopt.stages.evaluations import Evaluated
from trtopt.stages.search import Search
from trtopt.tune.search import Group
from trtopt.types import GateResult

GROUPS = tuple(Group(name=name, nodes=(name,), saving=1.0) for name in "abc")
FOUR = (*GROUPS, Group(name="d", nodes=("d",), saving=2.0))
LIMIT = 20.0


class Measured:
    """Evaluations in which the output SQNR depends on the half of the samples and on the groups that are kept.

    `few` are other values on the first 8 samples of the search.
    """

    seconds = 0.0
    passes = {"search": 0, "verdict": 0}  # noqa: RUF012

    def __init__(
        self,
        search: dict[str, float],
        verdict: dict[str, float],
        few: dict[str, float] | None = None,
        groups: Sequence[Group] = GROUPS,
    ) -> None:
        self.sqnr = {"search": search, "verdict": verdict}
        self.few = few or {}
        self.groups = groups
        self.asked: list[str] = []

    def mask(self, kept: Sequence[Group]) -> int:
        return sum(1 << self.groups.index(group) for group in kept)

    def ceiling(self, *_: Any) -> tuple[GateResult, ...]:
        return self._gates(float("inf"))

    def choice(self, half: str, samples: Dataset, count: int, kept: Sequence[Group], **_: Any) -> Evaluated:
        names = "".join(sorted(group.name for group in kept))
        if half == "verdict":
            self.asked.append(names)
        value = self.sqnr[half].get(names, 10.0) if len(kept) < len(self.groups) else 50.0
        if half == "search" and count == 8:
            value = self.few.get(names, value)
        return Evaluated(gates=self._gates(value), drift=value)

    def answer(self, question: str, *_: Any, **__: Any) -> dict[str, float]:
        return {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}

    @staticmethod
    def _gates(value: float) -> tuple[GateResult, ...]:
        verdict = "pass" if value >= LIMIT else "fail"
        return (GateResult(output="y", metric="sqnr", value=value, limit=LIMIT, verdict=verdict, reason=""),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("search", "verdict", "kept"),
    [
        ({"ab": 22.0, "a": 20.2}, {"ab": 22.0, "a": 20.2}, "a"),
        ({"ab": 22.0, "a": 20.2}, {"ab": 22.0, "a": 19.8}, "ab"),
        ({"ab": 22.0, "a": 19.9}, {"ab": 22.0, "a": 20.2}, "ab"),  # the search saw it fail
        ({"ab": 20.2, "a": 19.9}, {"ab": 20.2}, "ab"),  # nothing but all of them holds with the margin
    ],
)
def test_the_verdict_judges_what_only_lacks_the_margin(
    search: dict[str, float], verdict: dict[str, float], kept: str
) -> None:
    known = Measured(search, verdict)
    assert searched(known, samples=2) == kept
    assert known.asked[0] == ""
    assert len(known.asked) <= 3


@pytest.mark.parametrize(
    ("verdict", "kept"),
    [
        ({"bcd": 30.0, "cd": 30.0, "bc": 10.0}, "cd"),
        ({"bcd": 30.0, "cd": 30.0, "bc": 30.0}, "bc"),
        ({"acd": 30.0, "cd": 10.0, "bc": 30.0}, "acd"),  # it is not judged after one before it was refused
    ],
)
def test_a_cheaper_choice_that_held_on_few_samples_and_was_left_is_judged_last(
    verdict: dict[str, float], kept: str
) -> None:
    few = {"abc": 30.0, "bc": 30.0, "c": 30.0}  # on more samples none of them holds
    assert searched(Measured({"bcd": 30.0, "cd": 30.0}, verdict, few, FOUR), samples=64) == kept


def searched(known: Measured, samples: int) -> str:
    """Return the names of the groups that the search keeps."""
    names = "".join(group.name for group in known.groups)
    trials = SimpleNamespace(
        groups=known.groups, shares=dict.fromkeys(names, 1 / len(names)), total=6.0, overhead=0.0, worst=lambda _: []
    )
    ids = tuple(map(str, range(samples)))
    dataset = Dataset(source="s", digest="d", ids=ids, load=lambda i: {}, batched=True)
    run = SimpleNamespace(emit=lambda event: None, note=lambda text: None)
    found = Search(run, trials, known, TunePlan()).result(dataset, dataset)  # type: ignore[arg-type]
    return "".join(group.name for group in found.groups if not group.quantized)
