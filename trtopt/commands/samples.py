"""The samples of a conversion: opened and checked before anything is calibrated.

Touches: reads the samples; the run directory, through the store.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtopt import stages
from trtopt.commands import checks
from trtopt.data.dataset import Dataset
from trtopt.plan import ConvertPlan
from trtopt.run import Run
from trtopt.shapes import named
from trtopt.types import OnnxModel, ShapeRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of `--calib` and `--data`, and both halves of the latter if a search uses one of them."""

    calib: Dataset | None
    data: Dataset | None
    halves: stages.Halves | None = None

    @property
    def observed(self) -> Dataset | None:
        """Samples to observe activations on."""
        return self.calib or self.data

    @property
    def judged(self) -> Dataset | None:
        """Samples to compare on."""
        return self.halves.verdict if self.halves else self.data or self.calib

    @property
    def labelled(self) -> bool:
        """Whether the samples of `--data` have labels."""
        return self.data is not None and self.data.labels is not None


def open_all(run: Run, plan: ConvertPlan, source: OnnxModel, ranges: tuple[ShapeRange, ...]) -> Samples:
    """Open the samples. Unreadable ones, and those that do not fit, fail here, not after an hour of calibration.

    Raises:
        TrtoptError: the samples cannot be read, or do not fit the model, its shape ranges or the classes.
    """
    data, calib = (stages.open_samples(each, source, ranges) for each in (plan.data, plan.calib))
    stages.tell(run.emit, calib, data)
    samples = Samples(calib=calib, data=data, halves=stages.halves(data) if plan.tuning and data else None)
    dataset = samples.judged
    if dataset is None:
        return samples
    if plan.compare:
        checks.classes(dataset, plan.measure, source)
    checks.within(dataset, source.inputs, [entry for entry in ranges if entry.name in named(plan.shapes)])
    stages.read(run, calib, data)
    if plan.compare:
        stages.check_randomness(run, source, dataset)
    return samples
