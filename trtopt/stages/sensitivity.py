"""The stage `sensitivity`: what quantizing each group costs in accuracy, estimated for all, and measured for the worst.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.codec import decode
from trtopt.data.dataset import Dataset
from trtopt.events import Progress
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.shards.partial import Partial
from trtopt.shards.shard import WHOLE, Shard
from trtopt.stages.mixed import FEW, Subject, Trials, error_of, worst_of
from trtopt.stages.trial import Energies, combined
from trtopt.types import SensitiveGroup, Sensitivity
from trtopt.wording import counted

if TYPE_CHECKING:
    from trtopt.precision.passes.switches import Part
    from trtopt.tune.search import Group

GROUPS = "groups.json"
"""Member of a partial result with what was `Examined`."""
SAMPLES = 16
"""Samples on which groups are measured."""
_RESAMPLED = 400
"""Sets of samples that are drawn for an interval."""

_PARTS: Mapping[str, tuple[Part, ...]] = {
    "all": ("weight", "clip", "round", "bias"),
    "weight": ("weight",),
    "clipped": ("clip",),
    "activation": ("clip", "round"),
    "uncorrected": ("weight", "clip", "round"),
}
"""The parts of a quantization that are turned on together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """The errors of some of the groups.

    Attributes:
        estimates: each of these groups, in the network's order, with an estimate.
        measured: those of them that may be among the worst of the network, measured.
        whole: the error with all groups of the network quantized; NaN if it is left to another part.
    """

    estimates: tuple[SensitiveGroup, ...]
    measured: tuple[SensitiveGroup, ...]
    whole: float


def sensitivity(run: Run, subject: Subject, dataset: Dataset) -> Sensitivity:
    """Return the errors that quantizing each group adds, on a few of the samples."""
    key = {
        "baseline": subject.baseline.digest,
        "model": subject.model.digest,
        "target": asdict(subject.target),
        "table": dict(sorted(subject.table.scales.items())),
        "seen": [subject.seen.digest, subject.seen.correction],
        "data": dataset.digest,
        "device": run.place,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir"),
    }

    def make(_: Path) -> Sensitivity:
        return _joined([examined(run, subject, dataset)], dataset)

    return run.store.stage("sensitivity", key, Sensitivity, make, _line)


def examined(run: Run, subject: Subject, dataset: Dataset, shard: Shard = WHOLE) -> Examined:
    """Return the errors of a shard of the groups; the first shard also measures the whole network.

    Groups are divided, not samples: a few samples are enough, and each group needs a network of its own.
    """
    from trtopt.calibrate.ranges import few

    trials = Trials(run, subject)
    groups = [trials.groups[place] for place in shard.of(len(trials.groups))]
    some, fewer = few(dataset, SAMPLES), few(dataset, FEW)
    alone = trials.alone(fewer, groups)
    estimates = _estimated(run, trials, fewer, alone, groups) if groups else {}
    worst = trials.worst(alone)
    return Examined(
        estimates=tuple(estimates.values()),
        measured=tuple(_measured(trials, some, group, estimates[group.name]) for group in worst),
        whole=error_of(lambda: trials.energies(some, ())) if shard.number == 1 else math.nan,
    )


def merged(run: Run, partials: Sequence[Partial], dataset: Dataset, key: Mapping[str, Any]) -> Sensitivity:
    """Return the errors of all groups from the partial results of all shards.

    `key` is what must be the same here as for the shards.

    Raises:
        UsageError: the partial results are of another model or data set.
        StoreError: one is damaged.
    """
    from trtopt.shards.partial import check_key, damaged

    header = partials[0].header.key
    check_key(partials, {**header, **key})

    def make(_: Path) -> Sensitivity:
        parts = []
        for each in partials:
            try:
                parts.append(decode(Examined, json.loads(each.read(GROUPS))))
            except ValueError as error:
                raise damaged(each.path, str(error)) from error
        return _joined(parts, dataset)

    return run.store.stage("sensitivity", {"shards": dict(header)}, Sensitivity, make, _line)


def _joined(parts: Sequence[Examined], dataset: Dataset) -> Sensitivity:
    """Return the groups of all parts, with the worst of them as they were measured."""
    from trtopt.calibrate.ranges import few

    estimates = {group.name: group for part in parts for group in part.estimates}
    measured = {group.name: group for part in parts for group in part.measured}
    worst = worst_of({name: group.alone for name, group in estimates.items()}, len(estimates))
    found = {**estimates, **{name: measured[name] for name in worst}}
    return Sensitivity(
        groups=tuple(sorted(found.values(), key=lambda group: -group.alone)),
        whole=parts[0].whole,
        samples=few(dataset, SAMPLES).samples,
        few=few(dataset, FEW).samples,
    )


def _estimated(
    run: Run, trials: Trials, dataset: Dataset, alone: Mapping[str, float], groups: Sequence[Group]
) -> dict[str, SensitiveGroup]:
    """Return an estimate for each of the groups; the parts come from a network whose quantizations can be switched."""
    found = {}
    board, energies = trials.switched(dataset)
    for done, group in enumerate(groups, start=1):
        errors = {name: error_of(partial(energies, board.only(group.nodes, parts))) for name, parts in _PARTS.items()}
        found[group.name] = SensitiveGroup(
            name=group.name,
            nodes=group.nodes,
            share=trials.shares[group.name],
            alone=alone[group.name],
            others=error_of(partial(energies, board.choice(group.nodes))),
            exact=False,
            parts={
                "all": errors["all"],
                "weight": errors["weight"],
                "clipped": errors["clipped"],
                "rounded": max(errors["activation"] - errors["clipped"], 0.0),
                "bias": errors["all"] - errors["uncorrected"],
            },
        )
        run.emit(Progress("sensitivity", done, len(groups)))
    return found


def _measured(trials: Trials, dataset: Dataset, group: Group, estimate: SensitiveGroup) -> SensitiveGroup:
    """Return the same with the errors measured, and with an interval."""
    samples: list[Energies] = []

    def alone() -> list[Energies]:
        samples.extend(trials.energies(dataset, trials.nodes(trials.groups) - {*group.nodes}))
        return samples

    error = error_of(alone)
    others = error_of(lambda: trials.energies(dataset, group.nodes))
    low, high = interval(samples, combined) if samples else (error, error)
    return replace(estimate, alone=error, others=others, exact=True, low=low, high=high)


def interval(samples: Sequence[Energies], statistic: Callable[[Sequence[Energies]], float]) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of a statistic over samples that are drawn with replacement (bootstrap)."""
    import numpy as np

    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(samples), (_RESAMPLED, len(samples)))
    values = [statistic([samples[i] for i in draw]) for draw in draws]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _line(found: Sensitivity) -> str:
    exact = sum(group.exact for group in found.groups)
    if not found.groups:
        return "nothing is quantized"
    return f"{counted(len(found.groups), 'group')}, {exact} of them measured; the worst is {found.groups[0].name}"
