"""The verdict on several choices by fixed-sequence testing.

The choices are in an order that does not depend on the samples of the verdict, the safest first. Each is judged on the
same samples at 5 %, and the first that is not acceptable ends the sequence: no later one is accepted. Then the
probability that any choice is accepted although it truly exceeds a limit is at most 5 %, without a correction for the
number of choices (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001, J. Stat. Plan. Inference 99:25). For a
wrong acceptance the first choice in the order that exceeds a limit must be accepted, and that is one test.

The last choice is everything quantized, and each choice keeps what the next one keeps. So if a choice is accepted, the
safer ones would be on the same samples, and need not be asked.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from trtopt.tune.search import Group
from trtopt.types import GateResult

T = TypeVar("T")

_SHARES = (1.0, 0.875, 0.75, 0.5)
"""Shares of the other groups that the first choices of a sequence keep in addition to the boldest one."""
_MORE = (4, 1, 0)
"""Groups that the last choices of a sequence keep in addition to the boldest one."""


def unacceptable(results: Sequence[GateResult], reference: Sequence[GateResult]) -> GateResult | None:
    """Return the first gate that is not as good as needed; None if all are.

    Each must pass where the `reference`, the network without any quantized group, passes. Where too few samples leave
    even that inconclusive, it must not fail.
    """
    settled = {(each.output, each.metric, each.limit) for each in reference if each.verdict == "pass"}
    for each in results:
        if each.verdict == "fail":
            return each
        if each.verdict != "pass" and (each.output, each.metric, each.limit) in settled:
            return each
    return None


def ladder(order: Sequence[Group], kept: Collection[Group]) -> list[list[Group]]:
    """Return choices of groups to keep, from all of them to `kept`, each a subset of the one before.

    `order` are all groups, those to keep first in front.
    """
    more = [group for group in order if group not in kept]
    counts = {int(share * len(more)) for share in _SHARES} | {count for count in _MORE if count <= len(more)}
    return [[*kept, *more[:count]] for count in sorted(counts, reverse=True)]


def boldest(choices: Sequence[T], refusal: Callable[[T], GateResult | None]) -> tuple[int, GateResult | None]:
    """Return the place of the result, and what the next bolder choice is refused for; None if it is the boldest.

    The two boldest are asked first: if one is accepted, so are the safer ones on the same samples. Otherwise they are
    asked from the safest on, up to the first that is refused. The first of all is the result if no other one is.
    """
    last = len(choices) - 1
    refused = refusal(choices[last])
    if refused is None:
        return last, None
    if last < 1:
        return 0, refused
    if last > 1:
        found = refusal(choices[last - 1])
        if found is None:
            return last - 1, refused
        last, refused = last - 1, found
    for place, choice in enumerate(choices[1:last]):
        found = refusal(choice)
        if found is not None:
            return place, found
    return last - 1, refused
