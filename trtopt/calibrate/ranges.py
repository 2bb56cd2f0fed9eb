"""The largest magnitude of every floating-point tensor, over a few samples: what 16-bit types must be able to hold.

Touches: nothing; it calls the function that runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import CalibrationError
from trtopt.events import Emit, Progress

SAMPLES = 16
"""Enough to see an order of magnitude, which is what FP16's margin needs; every tensor is read, so it is not cheap."""


def observe_ranges(
    run: Callable[[Feed], Mapping[str, Array]], dataset: Dataset, *, stage: str, emit: Emit
) -> tuple[dict[str, float], int]:
    """Return the largest magnitude of each float32 tensor that `run` gives, and how many samples were run.

    The samples, at most `SAMPLES`, are spread evenly over the dataset.

    Raises:
        CalibrationError: a tensor holds NaN or Inf; the tensor and the sample are named.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int))
    ranges: dict[str, float] = {}
    for done, index in enumerate(indices, start=1):
        for name, array in run(dataset.load(int(index))).items():
            if array.dtype != np.float32 or array.size == 0:
                continue
            largest = float(np.abs(array).max())  # NaN and Inf propagate
            if not np.isfinite(largest):
                raise CalibrationError(
                    f"tensor {name} holds NaN or Inf for sample {dataset.ids[index]}",
                    why="the FP32 model itself does not stay finite on it",
                    fix="Check the sample and its preprocessing",
                )
            ranges[name] = max(ranges.get(name, 0.0), largest)
        emit(Progress(stage, done, len(indices)))
    return ranges, len(indices)
