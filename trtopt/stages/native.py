"""Scales of TensorRT's own calibrator, which runs in a process of its own on a GPU.

Touches: a temporary folder; the GPU.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from trtopt.data.dataset import Dataset
from trtopt.plan import BuildPlan
from trtopt.run import Run
from trtopt.types import CalibrationTable, OnnxModel


def native(run: Run, known: CalibrationTable, model: OnnxModel, dataset: Dataset, plan: BuildPlan) -> CalibrationTable:
    """Return the table with the scales that TensorRT's own calibrator chooses; those that it lacks stay as they are."""
    from trtopt.calibrate import NATIVE
    from trtopt.calibrate.table import read_table
    from trtopt.engine.trt import apart
    from trtopt.engine.trt.locate import find

    trt = find(plan.tensorrt)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as name:
        samples, cache = Path(name) / "samples.npz", Path(name) / "native.cache"
        feeds = (dataset.load(index) for index in range(len(dataset)))
        shapes = {input: array.shape for input, array in dataset.load(0).items()}
        same = [feed for feed in feeds if {input: array.shape for input, array in feed.items()} == shapes]
        arrays = {f"{i} {input}": array for i, feed in enumerate(same) for input, array in feed.items()}
        np.savez(samples, **arrays)  # type: ignore[arg-type]
        request = apart.Native(tensorrt=trt.name, model=model.path.resolve(), samples=samples, plan=plan, out=cache)
        apart.native(trt, request, run.emit)
        own = read_table(cache).scales
    chosen = {tensor: own[tensor] for tensor in known.scales if own.get(tensor, 0.0) > 0}
    left = len(known.scales) - len(chosen)
    run.note(f"{len(chosen)} scales are those of {trt.title}'s own calibrator" + (f", {left} absmax" if left else ""))
    return replace(known, method=NATIVE, samples=len(same), scales={**known.scales, **chosen})
