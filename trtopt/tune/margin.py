"""Whether gates hold with a margin: on a few samples first, and on more of them until the question is settled.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtopt.compare.catalog import METRICS
from trtopt.types import GateResult

_BEST = dict.fromkeys(("cosine", "cosine_part", "r2"), 1.0) | dict.fromkeys(
    ("miou", "positions", "matched", "equal"), 100.0
)
"""Metrics whose distance from their best value grows with the error energy, and that value."""

_FIRST = 8
"""Samples of the first look: a batch."""
_SURE = 5.0
"""Margin in dB that settles a choice at the first look. It is 1 dB less each time that the samples double."""
_DOOMED = 0.5
"""By how many dB a choice must miss a gate to be refused before the last look."""


def first_unsafe(results: Sequence[GateResult], margin: float) -> GateResult | None:
    """Return the first result that fails, or that would if the error energy were `margin` dB larger; None if none does.

    With a negative margin, a result that misses its limit by less is safe. Only SQNR and what grows with the error
    energy has a margin. An inconclusive result is safe: few samples prove nothing.
    """
    return next((result for result in results if not _is_safe(result, margin)), None)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the first `count` samples.

    A choice does not hold if it is not at least `least` dB better than the gates, which may be negative. It holds if it
    is `sure` dB better; never, before the last look, if `sure` is None.
    """

    count: int
    sure: float | None
    least: float


def looks(count: int, margin: float, *, early: bool = True) -> list[Look]:
    """Return the looks at `count` samples: at 8 of them, at twice as many each time, and at all.

    At all of them `margin` dB decide. Unless `early`, no choice holds before.
    """
    doubled = [_FIRST << i for i in range(count.bit_length()) if _FIRST << i < count]
    found = [Look(few, max(_SURE - i, margin) if early else None, -_DOOMED) for i, few in enumerate(doubled)]
    return [*found, Look(count, margin, margin)]


def failure(
    looks: Sequence[Look],
    judge: Callable[[int], Sequence[GateResult]],
    unsettled: Callable[[Sequence[GateResult]], GateResult | None] = lambda _: None,
) -> tuple[GateResult, int] | None:
    """Return the result that shows that a choice does not hold, and on how many samples; None if it holds.

    The looks are taken in order until one settles the question. A choice does not hold at a look with an `unsettled`
    result, and not at all if the last one has such a result.

    Args:
        looks: ordered by their number of samples.
        judge: returns the results on the first samples, of this number.
        unsettled: returns a result that more samples might change; None if there is none.
    """
    for look in looks:
        results = judge(look.count)
        failed = first_unsafe(results, look.least)
        if failed is not None:
            return failed, look.count
        last = look is looks[-1]
        if not last and (look.sure is None or first_unsafe(results, look.sure) is not None):
            continue
        result = unsettled(results)
        if result is None:
            return None
        if last:
            return result, look.count
    return None


def _is_safe(result: GateResult, margin: float) -> bool:
    if result.verdict == "inconclusive":
        return True
    best = _BEST.get(result.metric)
    if best is not None:
        return best - result.value <= (best - result.limit) * 10 ** (-margin / 10)
    known = METRICS.get(result.metric)
    if known is not None and known.unit == "dB":
        return result.value >= result.limit + margin
    return result.verdict != "fail"
