"""The stage `guard`: nodes that stay in higher precision because the default gates would fail with them quantized.

It judges calibration samples, so that those of `--data` still tell about unseen data. Most networks hold as they are:
then one comparison on a few samples is all that it costs.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.events import Progress
from trtopt.plan import MeasurePlan
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.mixed import Subject, Trials
from trtopt.stages.target import Target
from trtopt.tune.borders import Borders
from trtopt.tune.search import Group, confirmed
from trtopt.types import GUARDED, GateResult, Guard, Keep
from trtopt.wording import counted

_MARGIN = 2.0
"""Margin in dB with which the gates must hold on `_SAMPLES` samples: the worst of a thousand is worse than theirs."""
_SAMPLES = 64
_ACCURACY = frozenset({"top1"})
"""Metrics that are about accuracy where there are labels, and about equal classes where there are none."""
_RANKED_ON = 8
"""Samples on which the errors of groups are measured."""


def guard(run: Run, subject: Subject, calib: Dataset, measure: MeasurePlan, *, labelled: bool) -> Target:
    """Return the target with the nodes to keep in the fallback precision, so that the default gates should hold.

    Gates of the user are not considered. A trial that fails for another reason is a warning, and nothing is kept.

    Args:
        run: the run.
        subject: the network and its scales.
        calib: the calibration samples.
        measure: how outputs are compared.
        labelled: whether the samples that the gates will judge have labels. Their gate on classes is then about
            accuracy, which calibration samples cannot tell: more of them change their class than become wrong.
    """

    def make(_: Path) -> Guard:
        try:
            trials = Trials(run, subject)
            costs = Borders(trials.graph, trials.groups, subject.seen.sizes)
            return _guarded(run, trials, costs, calib, measure, _ACCURACY if labelled else frozenset())
        except (EnvironmentUnableError, MissingDependencyError):
            raise
        except TrtoptError as error:
            run.warn(f"the quantized network could not be tried on calibration samples: {error}")
            return Guard(nodes=(), reason="not judged: the quantized network could not be tried")

    key = {
        "baseline": subject.baseline.digest,
        "model": subject.model.digest,
        "target": asdict(subject.target),
        "table": dict(sorted(subject.table.scales.items())),
        "seen": [subject.seen.digest, subject.seen.correction],
        "data": calib.digest,
        "measure": encode(measure),
        "labelled": labelled,
        "device": run.place,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "scipy"),
    }
    found = run.store.stage("guard", key, Guard, make, lambda result: _line(result, subject.target.rest, labelled))
    keep = tuple(Keep(pattern=node, reason=f"{GUARDED}: {found.reason}") for node in found.nodes)
    return replace(subject.target, keep=(*subject.target.keep, *keep))


def _guarded(
    run: Run, trials: Trials, costs: Borders, calib: Dataset, measure: MeasurePlan, unknown: Collection[str]
) -> Guard:
    from trtopt.data.dataset import first, scattered, selected, spread, unlabelled
    from trtopt.tune.margin import failure, looks

    samples = scattered(selected(unlabelled(calib), spread(calib.samples, _SAMPLES)))
    refused: dict[frozenset[str], tuple[GateResult, int]] = {}
    accepted: dict[frozenset[str], int] = {}  # by choice: on how many samples at least
    tried = 0

    def judged(count: int, names: frozenset[str]) -> list[GateResult]:
        gates = trials.judged(first(samples, count), names, measure).gates
        return [result for result in gates if result.metric not in unknown]

    def refusal(kept: Sequence[Group], enough: int) -> int | None:
        nonlocal tried
        names = frozenset(trials.nodes(costs.whole(kept)))
        if accepted.get(names, -1) >= enough:
            return None
        if names not in refused:
            tried += 1
            run.emit(Progress("guard", tried, 0, "trials"))
            found = failure(
                looks(samples.samples),
                _MARGIN,
                lambda count: judged(count, names),
                enough=enough if len(kept) < len(trials.groups) else 0,  # all of them is FP32 itself
            )
            if found is None:
                accepted[names] = enough
                return None
            refused[names] = found
        return refused[names][1]

    if refusal((), 0) is None:
        return Guard(nodes=(), reason="")
    found = refused[frozenset()]
    ranked = trials.ranked(selected(samples, range(min(_RANKED_ON, samples.samples))), costs)
    kept = confirmed(ranked, refusal, samples.samples, costs)
    failed, count = found
    reason = f"with all of it quantized, {failed.output}: {failed.reason} on {counted(count, 'calibration sample')}"
    if kept is None:
        return Guard(nodes=(), reason=f"no choice of nodes makes the default gates hold; {reason}")
    return Guard(nodes=tuple(node for group in costs.whole(kept) for node in group.nodes), reason=reason)


def _line(found: Guard, rest: str, labelled: bool) -> str:
    """Return the summary line."""
    if not found.nodes:
        left = ", but that on classes, which is left to the labels of --data" if labelled else ""
        return found.reason or f"the default gates are expected to hold with every node as placed{left}"
    what = f"{counted(len(found.nodes), 'node')} stay{'s' * (len(found.nodes) == 1)} in {rest}"
    return f"{what}: {found.reason}"
