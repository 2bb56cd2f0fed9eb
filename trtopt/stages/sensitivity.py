"""The stage `sensitivity`: what quantizing each group costs in accuracy, estimated for all, and measured for the worst.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.data.dataset import Dataset
from trtopt.events import Progress
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.mixed import FEW, Subject, Trials, error_of
from trtopt.stages.trial import Energies, combined
from trtopt.types import SensitiveGroup, Sensitivity

if TYPE_CHECKING:
    from trtopt.precision.passes.switches import Part
    from trtopt.tune.search import Group

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


def sensitivity(run: Run, subject: Subject, dataset: Dataset) -> Sensitivity:
    """Return the errors that quantizing each group adds, on a few of the samples."""

    def make(_: Path) -> Sensitivity:
        from trtopt.calibrate.ranges import few

        trials = Trials(run, subject)
        some, fewer = few(dataset, SAMPLES), few(dataset, FEW)
        alone = trials.estimated(some)
        estimates = _estimated(run, trials, fewer, alone)
        exact = {group.name: _measured(trials, some, group, estimates[group.name]) for group in trials.worst(alone)}
        groups = sorted({**estimates, **exact}.values(), key=lambda group: -group.alone)
        whole = error_of(lambda: trials.energies(some, ()))
        return Sensitivity(groups=tuple(groups), whole=whole, samples=some.samples, few=fewer.samples)

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
    return run.store.stage("sensitivity", key, Sensitivity, make, _line)


def _estimated(run: Run, trials: Trials, dataset: Dataset, alone: Mapping[str, float]) -> dict[str, SensitiveGroup]:
    """Return an estimate for every group, by its name; the parts from a network whose quantizations can be switched."""
    found = {}
    board, energies = trials.switched(dataset)
    for done, group in enumerate(trials.groups, start=1):
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
        run.emit(Progress("sensitivity", done, len(trials.groups)))
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
    return f"{len(found.groups)} groups, {exact} of them measured; the worst is {found.groups[0].name}"
