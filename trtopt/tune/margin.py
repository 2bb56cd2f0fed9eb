"""Whether the default gates hold with a margin: on a few samples, where the gates themselves will see others.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtopt.compare.catalog import METRICS
from trtopt.types import GateResult

_SIMILARITIES = frozenset({"cosine", "cosine_part", "r2"})
"""Metrics whose distance from 1 is proportional to the error energy."""


def first_unsafe(results: Sequence[GateResult], margin: float) -> GateResult | None:
    """Return the first result that fails, or that would if the error energy were `margin` dB larger; None if none does.

    Only SQNR and what is proportional to it has a margin. An inconclusive result is safe: few samples prove nothing.
    """
    return next((result for result in results if not _is_safe(result, margin)), None)


def _is_safe(result: GateResult, margin: float) -> bool:
    if result.verdict == "fail":
        return False
    if result.metric in _SIMILARITIES:
        return 1.0 - result.value <= (1.0 - result.limit) * 10 ** (-margin / 10)
    known = METRICS.get(result.metric)
    return known is None or known.unit != "dB" or result.value >= result.limit + margin
