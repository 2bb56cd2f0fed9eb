"""Whether gates hold with a margin: on a few samples first, and on more of them until the question is settled.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtopt.compare.catalog import METRICS
from trtopt.types import GateResult

_BEST = dict.fromkeys(("cosine", "cosine_part", "r2"), 1.0) | dict.fromkeys(
    ("miou", "positions", "matched", "equal"), 100.0
)
"""Metrics whose distance from their best value grows with the error energy, and that value."""

_OF_THE_WORST = frozenset({"sqnr_min", "sqnr_part", "cosine_part", "miou_min"})
"""Metrics of the worst sample or part, which each further sample can only lower."""

_FIRST = 8
"""Samples of the first look: a batch."""
_DOUBT = 0.5
"""By how many dB a metric of the first look may be too low."""
_TOO_HIGH, _WORST_TOO_HIGH = 4.0, 9.0
"""How many times as much it may be too high; the second for a metric of the worst sample."""


def first_unsafe(results: Sequence[GateResult], margin: float, doubt: float = 0.0) -> GateResult | None:
    """Return the first result that fails, or that would if the error energy were `margin` dB larger; None if none does.

    With a negative margin, a result that misses its limit by less is safe. Only SQNR and what grows with the error
    energy has a margin. A `doubt` in dB adds to it, more to metrics of the worst sample. An inconclusive result is
    safe: few samples prove nothing.
    """
    for result in results:
        times = _WORST_TOO_HIGH if result.metric in _OF_THE_WORST else _TOO_HIGH
        if not _is_safe(result, margin + times * doubt):
            return result
    return None


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the first `count` samples, with a `doubt` in dB about what all of them will show."""

    count: int
    doubt: float


def looks(count: int) -> list[Look]:
    """Return the looks at `count` samples: at 8, at twice as many each time, and at all of them."""
    doubled = [_FIRST << i for i in range(count.bit_length()) if _FIRST << i < count]
    return [*(Look(few, _DOUBT * math.sqrt(_FIRST / few)) for few in doubled), Look(count, 0.0)]


def failure(
    looks: Sequence[Look],
    margin: float,
    judge: Callable[[int], Sequence[GateResult]],
    unsettled: Callable[[Sequence[GateResult]], GateResult | None] = lambda _: None,
    *,
    enough: int = 0,
    clear: float = 1.0,
) -> tuple[GateResult, int] | None:
    """Return the result that shows that a choice does not hold, and on how many samples; None if it holds.

    The looks are taken in order until one settles the question: the gates fail or hold with `margin` dB, beyond doubt.
    A choice does not hold before the last look with an `unsettled` result, and not at all if the last one has such a
    result.

    Args:
        looks: ordered by their number of samples.
        margin: in dB.
        judge: returns the results on the first samples, of this number.
        unsettled: returns a result that more samples might change; None if there is none.
        enough: the number of samples on which a choice may hold before the last look.
        clear: how many times the doubt a gate must be missed by before the last look.
    """
    for look in looks:
        results = judge(look.count)
        failed = first_unsafe(results, margin - clear * look.doubt)
        if failed is not None:
            return failed, look.count
        last = look is looks[-1]
        if not last and (look.count < enough or first_unsafe(results, margin, look.doubt) is not None):
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
