"""A choice that holds on the samples of the search, but without its margin: it is judged, as the verdict needs none."""

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
LIMIT = 20.0


class Measured:
    """Evaluations in which the output SQNR depends on the half of the samples and on the groups that are kept."""

    seconds = 0.0
    passes = {"search": 0, "verdict": 0}  # noqa: RUF012

    def __init__(self, search: dict[str, float], verdict: dict[str, float]) -> None:
        self.sqnr = {"search": search, "verdict": verdict}
        self.asked: list[str] = []

    def mask(self, kept: Sequence[Group]) -> int:
        return sum(1 << GROUPS.index(group) for group in kept)

    def ceiling(self, *_: Any) -> tuple[GateResult, ...]:
        return self._gates(float("inf"))

    def choice(self, half: str, samples: Dataset, count: int, kept: Sequence[Group], **_: Any) -> Evaluated:
        names = "".join(sorted(group.name for group in kept))
        if half == "verdict":
            self.asked.append(names)
        value = self.sqnr[half].get(names, 10.0) if len(kept) < len(GROUPS) else 50.0
        return Evaluated(gates=self._gates(value), drift=value)

    def answer(self, question: str, *_: Any, **__: Any) -> dict[str, float]:
        return {"a": 3.0, "b": 2.0, "c": 1.0}

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
    trials = SimpleNamespace(
        groups=GROUPS, shares=dict.fromkeys("abc", 1 / 3), total=6.0, overhead=0.0, worst=lambda errors: []
    )
    dataset = Dataset(source="s", digest="d", ids=("1", "2"), load=lambda i: {}, batched=True)
    run = SimpleNamespace(emit=lambda event: None, note=lambda text: None)
    known = Measured(search, verdict)
    found = Search(run, trials, known, TunePlan()).result(dataset, dataset)  # type: ignore[arg-type]
    assert "".join(group.name for group in found.groups if not group.quantized) == kept
    assert known.asked[0] == ""
    assert len(known.asked) <= 3
