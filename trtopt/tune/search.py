"""The search for the groups to keep in higher precision.

It sees a network as a list of groups, each with the saving of quantizing it, an estimate of the error that it adds,
what keeping groups costs, and one question: does the network hold with these groups kept? The answers are expected to
be monotone, to keep more never harms. Where they are not, the result still holds, but may keep more than necessary.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

_NEGLIGIBLE = 1e-3
"""Share of the savings of all groups that is too little for a trial of its own."""
_FEW = 32
"""Samples of which every trial needs all: trials on some of them would soon be repeated on the others."""

Holds = Callable[[Sequence["Group"]], bool]
"""Whether the network passes with these groups kept in higher precision and the others quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes that are quantized together.

    Attributes:
        name: the first of the nodes.
        nodes: their names.
        saving: what quantizing them saves, in multiplications.
    """

    name: str
    nodes: tuple[str, ...]
    saving: float


class Costs:
    """Costs of keeping groups: what quantizing each of them saves, and nothing elsewhere."""

    def of(self, group: Group, kept: Collection[str]) -> float:  # noqa: ARG002 - it matters where there are borders
        """Return what keeping a group costs if others are kept, by name."""
        return group.saving

    def islands(self, kept: Sequence[Group]) -> list[list[Group]]:
        """Return the groups, those in one list whose costs depend on each other, in graph order."""
        return [[group] for group in kept]

    def saved(self, part: Sequence[Group], kept: Collection[Group]) -> float:
        """Return what quantizing some of the kept groups again saves."""
        return _sums(part, {group.name for group in kept if group not in part}, self)[-1]


ADDITIVE = Costs()


def ranked(groups: Sequence[Group], errors: Mapping[str, float], costs: Costs = ADDITIVE) -> list[Group]:
    """Return the groups in the order in which to keep them: the largest error for the smallest cost first.

    `errors` maps the name of a group to the relative error energy of the outputs that it adds. A group without a cost
    is kept before all others.
    """
    left, order = list(groups), dict[str, Group]()
    while left:
        best = max(left, key=lambda group: errors[group.name] / max(costs.of(group, order), 1e-30))
        left.remove(best)
        order[best.name] = best
    return list(order.values())


def fewest(order: Sequence[Group], holds: Holds, least: float = 0.0, costs: Costs = ADDITIVE) -> list[Group] | None:
    """Return groups to keep so that the network holds; None if there are none.

    A bisection finds how many groups of the order it takes. Then their islands, halves of islands, and so on, and each
    group, the largest cost first, are quantized again if the network still holds.

    Args:
        order: the groups, those to keep first in front.
        holds: asked about at most log2(groups) + 3 + 2 * (groups found) choices, with additive costs about at most
            log2(groups) + 3 + (groups found).
        least: groups that save less get no trial of their own. They are quantized again together: all, or half of them,
            until the network holds.
        costs: what keeping groups costs. One that would cost more if it were quantized again, as it lies between kept
            ones, stays kept.
    """
    if holds([]):
        return []
    if not order or not holds(order):
        return None
    low, high = 0, len(order)  # the first `high` groups are enough, the first `low` are not
    while high - low > 1:
        middle = (low + high) // 2
        if holds(order[:middle]):
            high = middle
        else:
            low = middle
    # The bisection has shown that the last group of the order is needed.
    return _put_back(order[:high], order[: high - 1], least, holds, costs)


def negligible(groups: Sequence[Group], samples: int) -> float:
    """Return the saving below which a group gets no trial of its own: with few samples, a thousandth of all savings.

    With few samples each trial needs all of them, and is a large part of a search.
    """
    return _NEGLIGIBLE * sum(group.saving for group in groups) if samples <= _FEW else 0.0


def confirmed(
    order: Sequence[Group],
    refusal: Callable[[Sequence[Group], int], int | None],
    samples: int,
    costs: Costs = ADDITIVE,
) -> list[Group] | None:
    """Return `fewest`, found by trials on few samples, but such that the result holds on all of them.

    Of many choices the luckiest is found first. If it does not hold on all samples, more groups are kept: the next one
    of the order, or twice as many until it holds. Then each is quantized again if the network still holds, on at least
    twice as many samples as showed that the first result does not. This is repeated until the result holds. With 32
    samples or fewer all of them are needed from the first trial on.

    Args:
        order: the groups, those to keep first in front. With all of them kept the network must hold.
        refusal: asked about a choice, and on how many samples it may be accepted at least; returns the number of
            samples on which it does not hold, or None.
        samples: the number of all samples.
        costs: what keeping groups costs.
    """
    enough = samples if samples <= _FEW else 0
    least = negligible(order, samples)
    kept = fewest(order, lambda kept: refusal(kept, enough) is None, least, costs)
    while kept is not None and (seen := refusal(kept, samples)) is not None:
        enough = min(2 * max(seen, enough), samples)
        more = [group for group in order if group not in kept]
        count = 1
        while count < len(more) and refusal([*kept, *more[:count]], enough) is not None:
            count *= 2
        wider = [*kept, *more[:count]]
        kept = _put_back(wider, wider, least, partial(_holds, refusal, enough), costs)
    return kept


def _holds(refusal: Callable[[Sequence[Group], int], int | None], enough: int, kept: Sequence[Group]) -> bool:
    return refusal(kept, enough) is None


def _put_back(
    kept: Sequence[Group], candidates: Sequence[Group], least: float, holds: Holds, costs: Costs
) -> list[Group]:
    """Return the groups to keep after parts of them, then each candidate, were quantized again if that holds.

    The parts are whole islands, their halves, and so on, as in delta debugging: a group inside an island often saves
    nothing alone. Of the candidates, the largest cost is tried first. Those that save less than `least` are quantized
    again together: all of them, or else half of them, until it holds. The last ones are tried the longest.
    """
    found, free = list(kept), {*candidates}
    parts = sorted(costs.islands(kept), key=lambda part: sum(group.saving for group in part))
    while parts:
        part = parts.pop()
        if len(part) == 1 or sum(group.saving for group in part) < least:
            continue
        fewer = _without(found, part)
        if {*part} <= free and _pays(part, found, costs) and holds(fewer):
            found = fewer
        else:
            parts = [*_halves(part, found, costs), *parts]
    todo = [group for group in candidates if group.saving >= least and group in found]
    while saved := [(costs.saved([group], found), -i) for i, group in enumerate(todo) if _pays([group], found, costs)]:
        group = todo.pop(-max(saved)[1])
        fewer = _without(found, [group])
        if holds(fewer):
            found = fewer
    small = [group for group in reversed(candidates) if group.saving < least and group in found]
    small = [group for group in small if _pays([group], found, costs)]
    while small and not holds(_without(found, small)):
        small = small[: len(small) // 2]
    return _without(found, small)


def _pays(part: Sequence[Group], kept: Collection[Group], costs: Costs) -> bool:
    """Return whether quantizing some of the kept groups again costs no more elsewhere than it saves itself."""
    return costs.saved(part, kept) >= min(sum(group.saving for group in part), 0.0)


def _halves(part: list[Group], found: Sequence[Group], costs: Costs) -> tuple[list[Group], list[Group]]:
    """Return two parts of about one half, cut where it costs least to keep one of them without the other."""
    count, others = len(part), {group.name for group in found if group not in part}
    left, right = (_sums(each, others, costs) for each in (part, part[::-1]))
    ats = range(max(1, count // 4), count - count // 4)
    at = min(ats, key=lambda at: (left[at] + right[count - at], abs(2 * at - count)))
    return part[:at], part[at:]


def _sums(groups: Sequence[Group], others: Collection[str], costs: Costs) -> list[float]:
    """Return what keeping the first 0, 1, 2, ... of the groups costs if only others are kept beside them."""
    kept, sums = {*others}, [0.0]
    for group in groups:
        sums.append(sums[-1] + costs.of(group, kept))
        kept.add(group.name)
    return sums


def _without(groups: Sequence[Group], fewer: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group not in fewer]
