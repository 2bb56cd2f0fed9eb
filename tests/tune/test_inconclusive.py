"""Searches on so few samples that a gate is inconclusive: what is as good as without quantization is acceptable."""

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
from trtopt.types import GateResult, Tuning, Verdict

GROUP = Group(name="a", nodes=("a",), saving=1.0)


def gates(verdict: Verdict) -> tuple[GateResult, ...]:
    return (GateResult(output="y", metric="top1", value=0.0, limit=1.0, verdict=verdict, reason=f"it is {verdict}"),)


class Known:
    """Evaluations that are known: of FP32 itself, without any quantized group, and with the only one."""

    seconds = 0.0
    passes = {"search": 0, "verdict": 0}  # noqa: RUF012

    def __init__(self, fp32: Verdict, half: Verdict, quantized: Verdict) -> None:
        self.fp32, self.half, self.quantized = fp32, half, quantized

    def mask(self, kept: Sequence[Group]) -> int:
        return len(kept)

    def ceiling(self, *_: Any) -> tuple[GateResult, ...]:
        return gates(self.fp32)

    def choice(self, half: str, samples: Dataset, count: int, kept: Sequence[Group], **_: Any) -> Evaluated:
        return Evaluated(gates=gates(self.half if kept else self.quantized), drift=20.0)

    def answer(self, *_: Any, **__: Any) -> dict[str, float]:
        return {"a": 1.0}


def searched(known: Known) -> Tuning:
    trials = SimpleNamespace(groups=(GROUP,), shares={"a": 1.0}, total=2.0, overhead=0.0, worst=lambda errors: [])
    dataset = Dataset(source="s", digest="d", ids=("1", "2"), load=lambda i: {}, batched=True)
    run = SimpleNamespace(emit=lambda event: None, note=lambda text: None)
    return Search(run, trials, known, TunePlan()).result(dataset, dataset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fp32", "half", "quantized", "is_quantized"),
    [
        ("pass", "pass", "pass", True),
        ("pass", "pass", "inconclusive", False),
        ("pass", "inconclusive", "inconclusive", True),
        ("inconclusive", "inconclusive", "inconclusive", True),
        ("pass", "inconclusive", "fail", False),
        ("inconclusive", "inconclusive", "fail", False),
    ],
)
def test_a_gate_must_be_as_good_as_without_quantization(
    fp32: Verdict, half: Verdict, quantized: Verdict, is_quantized: bool
) -> None:
    found = searched(Known(fp32, half, quantized))
    assert [group.quantized for group in found.groups] == [is_quantized]
    assert found.failed is None
    assert [choice.acceptable for choice in found.choices if choice.chosen] == [True]


def test_where_nothing_quantized_fails_it_is_said() -> None:
    found = searched(Known("pass", "fail", "fail"))
    assert [group.quantized for group in found.groups] == [False]
    assert found.failed is not None
