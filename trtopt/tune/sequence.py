"""The verdict on several choices by fixed-sequence testing.

The choices are put into an order before the samples of the verdict are looked at, the safest first. Each is judged on
the same samples at 5 %, and the first that is not acceptable ends the sequence: no later one is accepted. Then the
probability that any choice is accepted although it truly exceeds a limit is at most 5 %, without a correction for the
number of choices (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001, J. Stat. Plan. Inference 99:25). For a
wrong acceptance the first choice in the order that exceeds a limit must be accepted, and that is one test.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from trtopt.tune.search import Group
from trtopt.types import GateResult

T = TypeVar("T")

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
    counts = sorted({len(more), len(more) // 2, *(count for count in _MORE if count <= len(more))}, reverse=True)
    return [[*kept, *more[:count]] for count in counts]


def boldest(choices: Sequence[T], accepts: Callable[[T], bool]) -> int:
    """Return how many of the choices are accepted, one after the other until the first that is not."""
    for count, choice in enumerate(choices):
        if not accepts(choice):
            return count
    return len(choices)
