"""Whether the default gates hold with a margin: on a few samples, where the gates themselves will see others.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from trtopt.compare.catalog import METRICS
from trtopt.types import GateResult

T = TypeVar("T")

_BEST = dict.fromkeys(("cosine", "cosine_part", "r2"), 1.0) | dict.fromkeys(
    ("miou", "positions", "matched", "equal"), 100.0
)
"""Metrics whose distance from their best value grows with the error energy, and that value."""


def first_unsafe(results: Sequence[GateResult], margin: float) -> GateResult | None:
    """Return the first result that fails, or that would if the error energy were `margin` dB larger; None if none does.

    Only SQNR and what grows with the error energy has a margin. An inconclusive result is safe: few samples prove
    nothing.
    """
    return next((result for result in results if not _is_safe(result, margin)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier(Generic[T]):
    """Samples to judge a choice on, and the margin in dB with which these are enough to accept it."""

    samples: T
    sure: float


def first_failure(
    tiers: Sequence[Tier[T]],
    judge: Callable[[T], Sequence[GateResult]],
    margin: float,
    unsettled: Callable[[Sequence[GateResult]], GateResult | None] = lambda _: None,
) -> tuple[GateResult, T] | None:
    """Return the first result that is not safe with a margin of `margin` dB, and its samples; None if all are.

    The tiers are asked one after the other, the one with the fewest samples first. Whichever settles the question ends
    it: one that fails, or one that holds with its own, larger margin and without an `unsettled` result. The last one
    must not have such a result, either.
    """
    open_: tuple[GateResult, T] | None = None
    for tier in tiers:
        results = judge(tier.samples)
        failed = first_unsafe(results, margin)
        if failed is not None:
            return failed, tier.samples
        result = unsettled(results)
        open_ = (result, tier.samples) if result is not None else None
        if open_ is None and first_unsafe(results, tier.sure) is None:
            return None
    return open_


def _is_safe(result: GateResult, margin: float) -> bool:
    if result.verdict == "fail":
        return False
    best = _BEST.get(result.metric)
    if best is not None:
        return best - result.value <= (best - result.limit) * 10 ** (-margin / 10)
    known = METRICS.get(result.metric)
    return known is None or known.unit != "dB" or result.value >= result.limit + margin
