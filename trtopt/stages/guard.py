"""The stage `guard`: nodes that stay in higher precision because the default gates would fail with them quantized.

It judges calibration samples, so that those of `--data` still tell about unseen data. Most networks hold as they are:
then one comparison on a few samples is all that it costs.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

from collections.abc import Collection
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
from trtopt.tune.search import Group, fewest
from trtopt.types import GateResult, Guard, Keep

_MARGIN = 2.0
"""Margin in dB with which the gates must hold on `_SAMPLES` samples: the worst of a thousand is worse than theirs."""
_SAMPLES = 64
_RANKED_ON = 16
"""Samples on which the errors of groups are measured."""


def guard(run: Run, subject: Subject, calib: Dataset, measure: MeasurePlan) -> Target:
    """Return the target with the nodes to keep in the fallback precision, so that the default gates should hold.

    Gates of the user are not considered. A trial that fails for another reason is a warning, and nothing is kept.
    """

    def make(_: Path) -> Guard:
        try:
            return _guarded(run, Trials(run, subject), calib, measure)
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
        "device": run.place,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "scipy"),
    }
    found = run.store.stage("guard", key, Guard, make, lambda result: _line(result, subject.target.rest))
    keep = tuple(Keep(pattern=node, reason=f"kept by the guard: {found.reason}") for node in found.nodes)
    return replace(subject.target, keep=(*subject.target.keep, *keep))


def _guarded(run: Run, trials: Trials, calib: Dataset, measure: MeasurePlan) -> Guard:
    from trtopt.calibrate.ranges import few
    from trtopt.data.dataset import scattered, selected
    from trtopt.tune.margin import failure, looks

    tried = 0
    samples = scattered(few(calib, _SAMPLES))
    order: list[Group] = []

    def unsafe(kept: Collection[str], *, early: bool = True) -> tuple[GateResult, int] | None:
        nonlocal tried
        tried += 1
        run.emit(Progress("guard", tried, 0, "trials"))
        return failure(
            looks(len(samples)),
            _MARGIN,
            lambda count: trials.judged(selected(samples, range(count)), kept, measure).gates,
            early=early,
        )

    def chosen(*, early: bool) -> list[Group] | None:
        # Without any, it was judged before.
        return fewest(order, lambda kept: bool(kept) and unsafe(trials.nodes(kept), early=early) is None)

    found = unsafe(())
    if found is None:
        return Guard(nodes=(), reason="")
    order += trials.ranked(selected(samples, range(min(_RANKED_ON, len(samples)))))
    kept = chosen(early=True)
    # Of many choices the luckiest is found first, so one that is found must hold on all samples.
    if kept is not None and unsafe(trials.nodes(kept), early=False) is not None:
        kept = chosen(early=False)
    failed, count = found
    reason = f"with all of it quantized, {failed.output}: {failed.reason} on {count} calibration samples"
    if kept is None:
        return Guard(nodes=(), reason=f"no choice of nodes makes the default gates hold; {reason}")
    return Guard(nodes=tuple(node for group in kept for node in group.nodes), reason=reason)


def _line(found: Guard, rest: str) -> str:
    """Return the summary line."""
    if not found.nodes:
        return found.reason or "the default gates are expected to hold with every node as placed"
    what = f"{len(found.nodes)} node{'s' * (len(found.nodes) != 1)} stay{'s' * (len(found.nodes) == 1)} in {rest}"
    return f"{what}: {found.reason}"
