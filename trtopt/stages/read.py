"""The stage `read`: a first look at the samples, so that a bad one fails now, not after the engine was built.

A GPU that is not there is told here, too: no stage before this one runs on it.

Touches: the run directory, through the store; loads the samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.data.dataset import Dataset
from trtopt.events import Progress
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.types import Reading

if TYPE_CHECKING:
    from trtopt.data.look import Look


def read(run: Run, calib: Dataset | None, data: Dataset | None) -> None:
    """Load every sample once, and warn of values that cannot be right.

    Samples that the user's code makes each time that they are loaded are left to the stages that need them.

    Raises:
        DataError: a sample cannot be loaded, or contains NaN or infinity.
        EnvironmentUnableError: the networks are to run on a GPU, and onnxruntime has no CUDA provider.
    """
    named = {"calibration": calib, "evaluation": data}
    datasets = {name: dataset for name, dataset in named.items() if dataset is not None and not dataset.on_demand}
    if not datasets:
        return

    def make(_: Path) -> Reading:
        from trtopt.data.look import unlike
        from trtopt.engine.ort.device import check_device

        check_device(run.device)
        looks = {name: _looked(run, dataset) for name, dataset in datasets.items()}
        warnings = [f"all {name} samples are the same" for name, each in looks.items() if each.same]
        if len(looks) == len(named):
            warnings += unlike(*looks.values())
        return Reading(samples={name: each.samples for name, each in looks.items()}, warnings=tuple(warnings))

    key = {name: [dataset.digest, dataset.samples] for name, dataset in datasets.items()}
    found = run.store.stage("read", {**key, **versions("numpy", "pillow")}, Reading, make, _line)
    for warning in found.warnings:
        run.warn(warning)


def _looked(run: Run, dataset: Dataset) -> Look:
    from trtopt.data.look import look

    return look(dataset, lambda done: run.emit(Progress("read", done, dataset.samples)))


def _line(found: Reading) -> str:
    counts = [f"{count} {name}" for name, count in found.samples.items()]
    return f"{' and '.join(counts)} sample{'s' * (sum(found.samples.values()) != 1)}"
