"""The search of the stage `tune`: evaluations from a journal or from trials, and the decisions that follow from them.

Everything here is a function of the evaluations, so that a journal of them leads to the same decisions.

Touches: temporary files in the run directory, and the journal; reads the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trtopt.codec import decode, encode
from trtopt.compare.quality import quality
from trtopt.data.dataset import Dataset, selected, spread
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.events import Progress
from trtopt.plan import ConvertPlan, TunePlan
from trtopt.run import Run
from trtopt.stages.mixed import FEW, Trials
from trtopt.tune.journal import Journal
from trtopt.tune.margin import Tier, first_failure, first_unsafe
from trtopt.tune.search import Group, fewest, ranked
from trtopt.tune.sequence import boldest, ladder, unacceptable
from trtopt.types import Choice, GateResult, Half, TunedGroup, Tuning

INTERRUPTED = "it was interrupted"
_MARGIN = 0.5
"""Margin in dB with which a choice must hold on the samples of the search: the others may be worse."""
_CLEAR = 3.0
"""Margin in dB on all samples of the search with which a choice is expected to hold on the others."""
_TIERS = ((16, 4.0), (64, 2.0))
"""Numbers of samples that may settle a choice before all of them are run, and the margin in dB that it takes."""
RANKED_ON = 16
"""Samples on which the errors of groups are measured."""

Kept = tuple[Group, ...]


class _StoppedError(Exception):
    """The budget is spent; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Record of a choice in the journal: the results of its gates, and its drift (`trtopt.compare.quality`)."""

    gates: tuple[GateResult, ...]
    drift: float


class Search:
    """A search for the groups to keep, with everything that it has found out so far."""

    def __init__(self, run: Run, trials: Trials, journal: Journal, plan: ConvertPlan) -> None:
        self._run = run
        self._trials = trials
        self._journal = journal
        self._plan = plan
        self._budget = (plan.tuning or TunePlan()).budget
        self._places = {group.name: place for place, group in enumerate(trials.groups)}
        self._choices: list[tuple[Kept, Choice]] = []
        self._failures: list[tuple[Kept, str]] = []  # what was kept and is not enough, and the gate that fails
        self._best: Kept = trials.groups
        self._errors: dict[str, float] = {}
        self._seconds, self._passes = 0.0, 0
        self._asked: set[str] = set()

    def result(self, search: Dataset, verdict: Dataset) -> Tuning:
        """Return the boldest choice that is acceptable on both halves of the samples."""
        stopped, order, everything = "", list(self._trials.groups), self._trials.groups
        # What FP32 itself can show on these samples. Whether 16 bits pass is seen on some of them.
        reference = self._evaluated("search", search, everything)
        some = selected(search, spread(len(search), _TIERS[-1][0]))
        failed = unacceptable(self._evaluated("search", some, everything, as_built=True).gates, ())
        is_clear = False
        try:
            if failed is None:
                order = self._order(selected(search, spread(len(search), RANKED_ON)))
                fewest(order, lambda kept: self._holds(tuple(kept), search, reference))
                is_clear = self._is_clear(search, reference)
        except _StoppedError as stop:
            stopped = str(stop)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
            self._run.note("interrupted: the best choice so far is judged; interrupt again to end the run")
        choices = [everything, self._best] if is_clear else ladder(order, self._best)
        chosen, refused = self._judged(choices if self._best != everything else choices[:1], verdict)
        if len(chosen) == len(self._trials.groups):
            failed = failed or refused
        return Tuning(
            speed=(self._plan.tuning or TunePlan()).speed,
            groups=tuple(self._group(group, chosen, failed, refused) for group in self._trials.groups),
            choices=tuple(
                replace(each, chosen=each.half == "verdict" and set(kept) == set(chosen))
                for kept, each in self._choices
            ),
            share=self._share(chosen),
            cost=self._cost(chosen),
            searched=search.samples,
            judged=verdict.samples,
            passes=self._passes,
            stopped=stopped,
            failed=failed,
        )

    def _order(self, samples: Dataset) -> list[Group]:
        """Return the groups in the order in which to keep them: the most error for the least saving first."""
        estimates = self._answer(
            "estimates", lambda: self._trials.estimated(samples), passes=min(FEW, len(samples)) * len(self._places)
        )
        self._errors = decode(_Errors, {"by_group": estimates}).by_group  # an error may be infinite
        for group in self._trials.worst(self._errors):
            found = self._answer(
                f"alone {group.name}",
                partial(self._trials.alone, samples, [group]),
                passes=len(samples),
            )
            self._errors |= decode(_Errors, {"by_group": found}).by_group
        return ranked(self._trials.groups, self._errors)

    def _holds(self, kept: Kept, search: Dataset, reference: Evaluated) -> bool:
        """Return whether a choice is acceptable on the samples of the search, with a margin."""
        if len(kept) == len(self._trials.groups):
            return True  # the reference itself
        spent = self._budget.spent(self._seconds, len(self._choices))
        if spent:
            raise _StoppedError(spent)
        counts = [(count, sure) for count, sure in _TIERS if count < len(search)]
        tiers = [Tier(samples=selected(search, spread(len(search), count)), sure=sure) for count, sure in counts]
        last: list[tuple[Dataset, Evaluated]] = []

        def judge(samples: Dataset) -> Sequence[GateResult]:
            last.append((samples, self._evaluated("search", samples, kept)))
            return last[-1][1].gates

        found = first_failure(
            [*tiers, Tier(samples=search, sure=_MARGIN)],
            judge,
            _MARGIN,
            lambda results: unacceptable(results, reference.gates),
        )
        self._add("search", kept, *last[-1], found[0] if found else None)
        if found is not None:
            self._failures.append((kept, f"{_said(found[0])} on {found[1].samples} samples"))
        elif self._cost(kept) < self._cost(self._best):
            self._best = kept
        share = 100 * self._share(self._best)
        limit = self._budget.candidates
        total = int(limit) if limit < float("inf") else 0
        note = f"best so far: {share:.1f} % of the multiplications quantized"
        self._run.emit(Progress("tune", len(self._choices), total, note))
        return found is None

    def _is_clear(self, search: Dataset, reference: Evaluated) -> bool:
        """Return whether the best choice holds with such a margin that it needs no safer ones in case it is refused."""
        results = self._evaluated("search", search, self._best).gates
        return first_unsafe(results, _CLEAR) is None and unacceptable(results, reference.gates) is None

    def _judged(self, choices: Sequence[Sequence[Group]], verdict: Dataset) -> tuple[Kept, GateResult | None]:
        """Return the boldest of the choices that is accepted one after the other, and what fails with the next one."""
        reference: list[GateResult] = []
        refused: list[GateResult] = []

        def accepts(kept: Sequence[Group]) -> bool:
            found = self._evaluated("verdict", verdict, tuple(kept), as_built=True)
            failed = unacceptable(found.gates, reference)
            reference[:] = reference or found.gates
            self._add("verdict", tuple(kept), verdict, found, failed)
            refused.extend([failed] if failed else [])
            return failed is None

        accepted = boldest(choices, accepts)
        return tuple(choices[max(accepted - 1, 0)]), refused[0] if refused else None

    def _evaluated(self, half: Half, samples: Dataset, kept: Kept, *, as_built: bool = False) -> Evaluated:
        """Return the evaluation of a choice; `as_built` in 16 bits, which takes longer, else with an FP32 fallback."""
        mask = sum(1 << self._places[group.name] for group in kept)

        def evaluate() -> dict[str, Any]:
            try:
                found = self._trials.judged(
                    samples, Trials.nodes(kept), self._plan.measure, self._plan.gates, as_built=as_built
                )
            except (EnvironmentUnableError, MissingDependencyError):
                raise
            except TrtoptError as error:
                failed = GateResult(
                    output="", metric="run", value=0.0, limit=0.0, verdict="fail", reason=f"it cannot be run: {error}"
                )
                return dict(encode(Evaluated(gates=(failed,), drift=float("-inf"))))
            return dict(encode(Evaluated(gates=found.gates, drift=quality(found))))

        answer = self._answer(
            f"{half} {len(samples)} {mask:x}{' as built' * as_built}", evaluate, passes=samples.samples
        )
        return decode(Evaluated, answer)

    def _answer(self, question: str, evaluate: Callable[[], dict[str, Any]], *, passes: int) -> dict[str, Any]:
        """Return the answer that the journal holds, or evaluate and record it."""
        known = self._journal.find(question)
        if known is None:
            start = time.perf_counter()
            answer = encode(evaluate())
            known = {"seconds": round(time.perf_counter() - start, 3), "found": answer}
            self._journal.record(question, known)
        if question not in self._asked:
            self._asked.add(question)
            self._seconds += float(known["seconds"])
            self._passes += passes
        return dict(known["found"])

    def _add(self, half: Half, kept: Kept, samples: Dataset, found: Evaluated, failed: GateResult | None) -> None:
        choice = Choice(
            half=half,
            samples=samples.samples,
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
        kept = group in chosen
        reason = "the gates hold with it quantized"
        if kept and failed is not None:
            reason = f"with nothing quantized, {_said(failed)}"
        elif kept:
            reason = next((why for tried, why in self._failures if _shows(group, tried, self._best)), "")
            reason = reason and f"with it quantized, {reason}"
            if group not in self._best and refused is not None:
                reason = f"with it quantized, the verdict fails: {_said(refused)}"
        return TunedGroup(
            name=group.name,
            nodes=group.nodes,
            quantized=not kept,
            share=self._trials.shares[group.name],
            error=self._errors.get(group.name, float("nan")),
            reason=reason or "it was not tried before the search ended",
        )

    def _share(self, kept: Kept) -> float:
        names = {group.name for group in kept}
        return sum(share for name, share in self._trials.shares.items() if name not in names)

    def _cost(self, kept: Kept) -> float:
        names = {group.name for group in kept}
        saved = sum(group.saving for group in self._trials.groups if group.name not in names)
        return 1.0 - saved / self._trials.total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errors:
    by_group: dict[str, float]


def _shows(group: Group, tried: Kept, best: Kept) -> bool:
    """Return whether a choice that failed shows that a group must be kept: it keeps all the others that are kept."""
    return group not in tried and {*best} - {group} <= {*tried}


def _said(failed: GateResult) -> str:
    return f"{failed.output}: {failed.reason}" if failed.output else failed.reason
