"""The stage `tune`: which groups are quantized, so that the gates pass at the lowest cost.

Choices are searched for on one half of the samples, and judged on the other half. Every evaluation is appended to
`tune.jsonl`, from which a run that was stopped goes on.

Touches: the run directory, through the store, and `tune.jsonl` in it; reads the samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trtopt.code_digest import code_digest
from trtopt.codec import encode
from trtopt.data.dataset import Dataset, selected
from trtopt.errors import DataError
from trtopt.plan import ConvertPlan, TunePlan
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.evaluations import Evaluations
from trtopt.stages.mixed import Subject, Trials
from trtopt.stages.search import INTERRUPTED, Search
from trtopt.stages.target import Target
from trtopt.stages.timing import work_of
from trtopt.store import JOURNAL
from trtopt.tune.costs import SPEEDS
from trtopt.tune.journal import Journal
from trtopt.tune.timed import measured
from trtopt.types import EngineTimes, Keep, Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """The samples of `--data`: those to search on, at even positions, and those for the verdict, at odd ones."""

    search: Dataset
    verdict: Dataset


def halves(dataset: Dataset) -> Halves:
    """Return both halves of the samples.

    Raises:
        DataError: there are fewer than two.
    """
    if dataset.samples < 2:
        raise DataError(
            f"{dataset.source} has a single sample",
            why="tune searches on one half, and judges on the other",
            fix="Give more samples with --data",
        )
    even, odd = (selected(dataset, range(start, dataset.samples, 2)) for start in (0, 1))
    return Halves(search=even, verdict=odd)


def tune(
    run: Run, subject: Subject, samples: Halves, plan: ConvertPlan, times: EngineTimes | None = None
) -> tuple[Target, Tuning]:
    """Return the target with the nodes that must not be quantized, each with the reason, and the search for them.

    `times` are those of the layers of engines, for `--speed engine`.
    """
    assert plan.tuning is not None
    speed, budget = plan.tuning.speed, plan.tuning.budget
    key = {
        "baseline": subject.baseline.digest,
        "model": subject.model.digest,
        "target": asdict(subject.target),
        "table": dict(sorted(subject.table.scales.items())),
        "seen": [subject.seen.digest, subject.seen.correction],
        "data": [samples.search.digest, samples.verdict.digest],
        "labels": hashlib.sha256(repr([_labels(samples.search), _labels(samples.verdict)]).encode()).hexdigest(),
        "measure": encode(plan.measure),
        "gates": encode(plan.gates),
        "speed": speed,
        "times": hashlib.sha256(json.dumps(encode(times)).encode()).hexdigest() if times else "",
        "device": run.place,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "scipy"),
    }

    def make(_: Path) -> Tuning:
        inputs = hashlib.sha256(json.dumps([key, code_digest()], sort_keys=True).encode()).hexdigest()
        journal = Journal(run.store.root / JOURNAL, inputs, fresh=plan.cache == "ignore")
        if len(journal):
            run.note(f"{len(journal)} evaluations of an earlier run are used: {run.store.root / JOURNAL}")
        costs = measured(times.half, times.quantized, work_of(Trials(run, subject))) if times else SPEEDS[speed]
        trials = Trials(run, subject, costs)
        search = Search(run, trials, Evaluations(trials, journal, plan), plan.tuning or TunePlan())
        return search.result(samples.search, samples.verdict)

    found = run.store.stage("tune", {**key, "budget": encode(budget)}, Tuning, make, line)
    if found.stopped == INTERRUPTED:
        run.store.discard("tune")  # the next run goes on from the journal
    keep = tuple(
        Keep(pattern=node, reason=f"kept by tune: {group.reason}")
        for group in found.groups
        if not group.quantized
        for node in group.nodes
    )
    return replace(subject.target, keep=(*subject.target.keep, *keep)), found


def without(tuning: Tuning, keep: Sequence[Keep]) -> Tuning:
    """Return the search in whose result these nodes are not quantized either."""
    reasons = {each.pattern: each.reason for each in keep}
    groups = tuple(
        replace(group, quantized=False, reason=reasons[group.name]) if group.name in reasons else group
        for group in tuning.groups
    )
    return replace(tuning, groups=groups, share=sum(group.share for group in groups if group.quantized))


def _labels(dataset: Dataset) -> tuple[int, ...] | None:
    return dataset.groups.labels if dataset.groups else dataset.labels


def line(tuning: Tuning) -> str:
    """Return the summary line."""
    kept = [group for group in tuning.groups if not group.quantized]
    text = f"{len(tuning.groups) - len(kept)} of {len(tuning.groups)} groups quantized"
    text += f", {100 * tuning.share:.1f} % of the multiplications; cost {100 * tuning.cost:.1f} % of none quantized"
    return text + (f"; {tuning.stopped}: the best so far" if tuning.stopped else "")
