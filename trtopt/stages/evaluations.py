"""The evaluations of a search: from its journal, or from trials.

Touches: temporary files in the run directory, and the journal; reads the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trtopt.codec import decode, encode
from trtopt.compare.quality import quality
from trtopt.data.dataset import Dataset, first
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.plan import ConvertPlan
from trtopt.stages.mixed import Trials
from trtopt.tune.journal import Journal
from trtopt.tune.search import Group
from trtopt.types import GateResult, Half

Kept = tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Record of a choice in the journal: the results of its gates, and its drift (`trtopt.compare.quality`)."""

    gates: tuple[GateResult, ...]
    drift: float


class Evaluations:
    """The evaluations of choices of groups to keep.

    `seconds` is the time that they have taken, in all runs that the journal records, and `passes` the number of forward
    passes on each half of the samples.
    """

    def __init__(self, trials: Trials, journal: Journal, plan: ConvertPlan) -> None:
        self._trials = trials
        self._journal = journal
        self._plan = plan
        self._places = {group.name: place for place, group in enumerate(trials.groups)}
        self._asked: set[str] = set()
        self._ran: dict[tuple[Half, str], int] = {}
        self.seconds = 0.0
        self.passes: dict[Half, int] = {"search": 0, "verdict": 0}

    def mask(self, kept: Kept) -> int:
        """Return a choice as a number."""
        return sum(1 << self._places[group.name] for group in kept)

    def ceiling(self, half: Half, samples: Dataset) -> Sequence[GateResult]:
        """Return the results of FP32 against itself on a half of the samples, for which no candidate runs."""

        def evaluate() -> dict[str, Any]:
            found = self._trials.ceiling(samples, self._plan.measure, self._plan.gates)
            return dict(encode(Evaluated(gates=found.gates, drift=quality(found))))

        return decode(Evaluated, self.answer(f"{half} fp32", evaluate, passes=0)).gates

    def choice(self, half: Half, samples: Dataset, count: int, kept: Kept, *, as_built: bool = False) -> Evaluated:
        """Return the evaluation of a choice on the first samples of a half.

        It is `as_built` in 16 bits, which takes longer, else with an FP32 fallback.
        """
        choice = f"{self.mask(kept):x}{' as built' * as_built}"
        some = first(samples, count) if count < samples.samples else samples

        def evaluate() -> dict[str, Any]:
            try:
                found = self._trials.judged(
                    some, Trials.nodes(kept), self._plan.measure, self._plan.gates, as_built=as_built
                )
            except (EnvironmentUnableError, MissingDependencyError):
                raise
            except TrtoptError as error:
                failed = GateResult(
                    output="", metric="run", value=0.0, limit=0.0, verdict="fail", reason=f"it cannot be run: {error}"
                )
                return dict(encode(Evaluated(gates=(failed,), drift=float("-inf"))))
            return dict(encode(Evaluated(gates=found.gates, drift=quality(found))))

        # Samples that this choice has run for a smaller count are not run again.
        before = self._ran.get((half, choice), 0)
        answer = self.answer(f"{half} {count} {choice}", evaluate, passes=max(some.samples - before, 0))
        self._ran[half, choice] = max(some.samples, before)
        return decode(Evaluated, answer)

    def answer(self, question: str, evaluate: Callable[[], dict[str, Any]], *, passes: int) -> dict[str, Any]:
        """Return the answer that the journal holds, or evaluate and record it."""
        known = self._journal.find(question)
        if known is None:
            start = time.perf_counter()
            answer = encode(evaluate())
            known = {"seconds": round(time.perf_counter() - start, 3), "found": answer}
            self._journal.record(question, known)
        if question not in self._asked:
            self._asked.add(question)
            self.seconds += float(known["seconds"])
            self.passes["verdict" if question.startswith("verdict") else "search"] += passes
        return dict(known["found"])
