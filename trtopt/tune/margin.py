"""Whether the default gates hold with a margin: on a few samples, where the gates themselves will see others.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtopt.compare.catalog import METRICS
from trtopt.types import GateResult

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


def _is_safe(result: GateResult, margin: float) -> bool:
    if result.verdict == "fail":
        return False
    best = _BEST.get(result.metric)
    if best is not None:
        return best - result.value <= (best - result.limit) * 10 ** (-margin / 10)
    known = METRICS.get(result.metric)
    return known is None or known.unit != "dB" or result.value >= result.limit + margin
