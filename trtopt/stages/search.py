"""The search of the stage `tune`: the decisions that follow from evaluations.

Everything here is a function of the evaluations, so that a journal of them leads to the same decisions.

Touches: what the evaluations touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from trtopt.codec import decode
from trtopt.data.dataset import Dataset, scattered, selected
from trtopt.events import Progress
from trtopt.plan import TunePlan
from trtopt.run import Run
from trtopt.stages.evaluations import Evaluated, Evaluations, Kept
from trtopt.stages.mixed import FEW, Trials
from trtopt.tune.margin import failure, looks
from trtopt.tune.search import Group, confirmed, negligible, ranked
from trtopt.tune.sequence import boldest, ladder, unacceptable
from trtopt.types import Choice, GateResult, Half, TunedGroup, Tuning
from trtopt.wording import counted

INTERRUPTED = "it was interrupted"
_MARGIN = 0.5
"""Margin in dB with which a choice must hold on the samples of the search: the others may be worse."""
_CLEAR = 4.0
"""How many times the doubt a gate must be missed by for the verdict to refuse a choice on some of the samples."""
_MOST = 64
"""Samples of the search on which it is seen whether any choice can pass."""
RANKED_ON = 8
"""Samples on which the errors of groups are measured."""


class _StoppedError(Exception):
    """The budget is spent; the text says which."""


class Search:
    """A search for the groups to keep, with everything that it has found out so far."""

    def __init__(self, run: Run, trials: Trials, evaluations: Evaluations, plan: TunePlan) -> None:
        self._run = run
        self._trials = trials
        self._evaluations = evaluations
        self._plan = plan
        self._choices: list[tuple[Kept, Choice]] = []
        self._failures: list[tuple[Kept, str]] = []  # what was kept and is not enough, and the gate that fails
        self._held: dict[int, tuple[int, Kept]] = {}  # choices that hold, and the samples required of each, by mask
        self._refuted: dict[int, int] = {}  # on how many samples a choice does not hold, by its mask
        self._close: list[tuple[int, Kept]] = []  # on how many samples a choice holds there, but without the margin
        self._errors: dict[str, float] = {}
        self._least = 0.0  # what a group saves at least that is tried alone

    def result(self, search: Dataset, verdict: Dataset) -> Tuning:
        """Return the boldest choice that is acceptable on both halves of the samples."""
        search, verdict = scattered(search), scattered(verdict)
        stopped, failed = "", None
        chosen: Kept = ()
        refused = self._refused((), verdict)
        if refused is not None:
            stopped, failed, order = self._searched(search)
            choices = [*ladder(order, self._best()), *self._bolder()] if failed is None else [[*self._trials.groups]]
            place, refused = boldest(choices, lambda kept: self._refused(tuple(kept), verdict))
            chosen = tuple(choices[place])
            if refused is None and failed is None and (lucky := self._cheaper(chosen)):
                refused = self._refused(lucky, verdict)
                chosen = chosen if refused else lucky
            if len(chosen) == len(self._trials.groups):
                failed = failed or (refused if len(choices) == 1 else self._refused(chosen, verdict))
        return Tuning(
            speed=self._plan.speed,
            groups=tuple(self._group(group, chosen, failed, refused) for group in self._trials.groups),
            choices=tuple(
                replace(each, chosen=each.half == "verdict" and set(kept) == set(chosen))
                for kept, each in self._choices
            ),
            share=self._share(chosen),
            cost=self._cost(chosen),
            searched=search.samples,
            judged=verdict.samples,
            passes=self._evaluations.passes["search"],
            judging=self._evaluations.passes["verdict"],
            stopped=stopped,
            failed=failed,
        )

    def _searched(self, search: Dataset) -> tuple[str, GateResult | None, list[Group]]:
        """Search for the best choice; return why it ended early, the gate that no choice can pass, and the order."""
        order = list(self._trials.groups)
        self._least = negligible(order, search.samples)
        try:
            failed = self._hopeless(search)
            if failed is None:
                order = self._order(selected(search, range(min(RANKED_ON, search.samples))))
                confirmed(order, lambda kept, enough: self._refusal(tuple(kept), search, enough), search.samples)
        except _StoppedError as stop:
            return str(stop), None, order
        except KeyboardInterrupt:
            self._run.note("interrupted: the best choice so far is judged; interrupt again to end the run")
            return INTERRUPTED, None, order
        return "", failed, order

    def _hopeless(self, search: Dataset) -> GateResult | None:
        """Return the gate that fails with nothing quantized, on some samples of the search; None if none does."""
        found = failure(
            looks(min(_MOST, search.samples)),
            0.0,
            lambda count: self._evaluations.choice("search", search, count, self._trials.groups, as_built=True).gates,
        )
        return found[0] if found else None

    def _order(self, samples: Dataset) -> list[Group]:
        """Return the groups in the order in which to keep them: the most error for the least saving first."""
        estimates = self._evaluations.answer(
            "estimates",
            lambda: self._trials.estimated(samples),
            passes=min(FEW, samples.samples) * len(self._trials.groups),
        )
        self._errors = decode(_Errors, {"by_group": estimates}).by_group  # an error may be infinite
        for group in self._trials.worst(self._errors):
            found = self._evaluations.answer(
                f"alone {group.name}",
                partial(self._trials.alone, samples, [group]),
                passes=samples.samples,
            )
            self._errors |= decode(_Errors, {"by_group": found}).by_group
        return ranked(self._trials.groups, self._errors)

    def _refusal(self, kept: Kept, search: Dataset, enough: int) -> int | None:
        """Return on how many samples of the search a choice is not acceptable, with a margin; None if it is.

        It is accepted on at least `enough` of them.
        """
        mask = self._evaluations.mask(kept)
        if len(kept) == len(self._trials.groups):
            return None  # FP32 itself
        if mask in self._refuted:
            return self._refuted[mask]
        spent = self._plan.budget.spent(
            self._evaluations.seconds, sum(each.half == "search" for _, each in self._choices)
        )
        if spent:
            raise _StoppedError(spent)
        found = self._failure("search", search, kept, enough)
        if found is None:
            self._held[mask] = (enough, kept)
        else:
            self._failures.append((kept, f"{_said(found[0])} on {counted(found[1], 'sample')}"))
            self._refuted[mask] = found[1]
            self._held.pop(mask, None)
        share = 100 * self._share(self._best())
        limit = self._plan.budget.candidates
        total = int(limit) if limit < float("inf") else 0
        note = f"best so far: {share:.1f} % of the multiplications quantized"
        self._run.emit(Progress("tune", len(self._choices), total, note))
        return found[1] if found else None

    def _best(self) -> Kept:
        """Return the cheapest choice that holds on the samples of the search, of those that had to on the most.

        The search asks for more samples each time that a choice which held on few is refused. What held before that is
        no better founded, and may be cheaper only by luck.
        """
        found = min(self._held.values(), key=lambda each: (-each[0], self._cost(each[1])), default=None)
        return found[1] if found else self._trials.groups

    def _cheaper(self, chosen: Kept) -> Kept | None:
        """Return a cheaper choice that held on fewer samples of the search than it asked for in the end, if any.

        It is the last one of the sequence: it is judged only if those before it are accepted.
        """
        found = min((kept for _, kept in self._held.values()), key=self._cost, default=chosen)
        return found if self._cost(found) < self._cost(chosen) else None

    def _bolder(self) -> list[Kept]:
        """Return a choice that keeps less than the best one, and was refused for want of a margin only, if any.

        The verdict needs no margin. Of several it is the one that held on the most samples.
        """
        best = {*self._best()}
        close = [(count, -self._cost(kept), kept) for count, kept in self._close if {*kept} < best]
        return [max(close, key=lambda each: each[:2])[2]] if close else []

    def _refused(self, kept: Kept, verdict: Dataset) -> GateResult | None:
        """Return the gate that a choice fails on the samples of the verdict, as it would be built; None if none does.

        A choice may be refused on some of the samples, but is accepted on all of them only.
        """
        found = self._failure("verdict", verdict, kept, verdict.samples)
        return found[0] if found else None

    def _failure(self, half: Half, samples: Dataset, kept: Kept, enough: int) -> tuple[GateResult, int] | None:
        """Return the gate that a choice fails on a half of the samples, and on how many samples; None if it holds.

        It is accepted on at least `enough` of them.
        """
        last: list[tuple[int, Evaluated]] = []

        def judge(count: int) -> Sequence[GateResult]:
            last.append((count, self._evaluations.choice(half, samples, count, kept, as_built=half == "verdict")))
            return last[-1][1].gates

        def unsettled(results: Sequence[GateResult]) -> GateResult | None:
            failed = unacceptable(results, self._evaluations.ceiling(half, samples))
            if failed is None or half == "search":
                return failed
            # FP32 could pass, but 16 bits may leave it as inconclusive.
            reference = self._evaluations.choice(half, samples, samples.samples, self._trials.groups, as_built=True)
            return unacceptable(results, reference.gates)

        margin = _MARGIN if half == "search" else 0.0
        clear = 1.0 if half == "search" else _CLEAR
        found = failure(looks(samples.samples), margin, judge, unsettled, enough=enough, clear=clear)
        count, evaluated = last[-1]
        self._add(half, kept, count, evaluated, found[0] if found else None)
        fails = any(each.verdict == "fail" for each in evaluated.gates)
        if found and found[0].verdict == "pass" and half == "search" and not fails:
            self._close.append((found[1], kept))
        return found

    def _add(self, half: Half, kept: Kept, samples: int, found: Evaluated, failed: GateResult | None) -> None:
        choice = Choice(
            half=half,
            samples=samples,
            quantized=len(self._trials.groups) - len(kept),
            share=self._share(kept),
            cost=self._cost(kept),
            drift=found.drift,
            acceptable=failed is None,
            reason=_said(failed) if failed else "",
        )
        self._choices.append((kept, choice))

    def _group(self, group: Group, chosen: Kept, failed: GateResult | None, refused: GateResult | None) -> TunedGroup:
        """Return what was decided about a group, and why."""
        kept, best = group in chosen, self._best()
        if not {*best} <= {*chosen}:  # a cheaper choice was accepted
            best = chosen
        reason = "the gates hold with it quantized"
        if kept and failed is not None:
            reason = f"with nothing quantized, {_said(failed)}"
        elif kept:
            reason = next((why for tried, why in self._failures if _shows(group, tried, best)), "")
            reason = reason and f"with it quantized, {reason}"
            if group not in best and refused is not None:
                reason = f"with it quantized, the verdict fails: {_said(refused)}"
        return TunedGroup(
            name=group.name,
            nodes=group.nodes,
            quantized=not kept,
            share=self._trials.shares[group.name],
            error=self._errors.get(group.name, float("nan")),
            reason=reason or self._untried(group),
        )

    def _untried(self, group: Group) -> str:
        if group.saving < self._least:
            return "it saves too little for a trial of its own"
        return "it was not tried before the search ended"

    def _share(self, kept: Kept) -> float:
        names = {group.name for group in kept}
        return sum(share for name, share in self._trials.shares.items() if name not in names)

    def _cost(self, kept: Kept) -> float:
        names = {group.name for group in kept}
        lowered = [group.saving for group in self._trials.groups if group.name not in names]
        return 1.0 - (sum(lowered) - (self._trials.overhead if lowered else 0.0)) / self._trials.total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errors:
    by_group: dict[str, float]


def _shows(group: Group, tried: Kept, best: Kept) -> bool:
    """Return whether a choice that failed shows that a group must be kept: it keeps all the others that are kept."""
    return group not in tried and {*best} - {group} <= {*tried}


def _said(failed: GateResult) -> str:
    return f"{failed.output}: {failed.reason}" if failed.output else failed.reason
