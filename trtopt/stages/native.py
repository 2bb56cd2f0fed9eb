"""Scales of TensorRT's own calibrator, which runs in a process of its own on a GPU.

Touches: a temporary folder; the GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trtopt.data.dataset import Dataset, Feed, joined
from trtopt.plan import BuildPlan
from trtopt.run import Run
from trtopt.types import CalibrationTable, OnnxModel

_BATCH = 64
"""Largest batch of the calibrator."""


def native(run: Run, known: CalibrationTable, model: OnnxModel, dataset: Dataset, plan: BuildPlan) -> CalibrationTable:
    """Return the table with the scales that TensorRT's own calibrator chooses; those that it lacks stay as they are."""
    from trtopt.calibrate import NATIVE
    from trtopt.calibrate.table import read_table
    from trtopt.engine.trt import apart
    from trtopt.engine.trt.locate import find

    trt = find(plan.tensorrt)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as name:
        samples, cache = Path(name) / "samples.npz", Path(name) / "native.cache"
        groups = _groups([dataset.load(index) for index in range(len(dataset))], _BATCH if dataset.batched else 1)
        feeds = [joined(group) for group in groups]
        arrays = {f"{i} {input}": array for i, feed in enumerate(feeds) for input, array in feed.items()}
        np.savez(samples, **arrays)  # type: ignore[arg-type]
        request = apart.Native(tensorrt=trt.name, model=model.path.resolve(), samples=samples, plan=plan, out=cache)
        apart.native(trt, request, run.emit)
        own = read_table(cache).scales
    chosen = {tensor: own[tensor] for tensor in known.scales if own.get(tensor, 0.0) > 0}
    left = len(known.scales) - len(chosen)
    run.note(f"{len(chosen)} scales are those of {trt.title}'s own calibrator" + (f", {left} absmax" if left else ""))
    return replace(known, method=NATIVE, samples=sum(map(len, groups)), scales={**known.scales, **chosen})


def _groups(feeds: Sequence[Feed], most: int) -> list[list[Feed]]:
    """Return the samples of each batch: of one size, at most `most`, and of samples from all over the data set.

    TensorRT's scales are poor if the calibrator's batches are small: a larger value doubles the range of a histogram,
    whose bins are then twice as wide. Samples of another shape than the first, and those that fill no batch, are left
    out.
    """
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    same = [feed for feed, shape in zip(feeds, shapes, strict=True) if shape == shapes[0]]
    count = -(-len(same) // most)
    return [same[start::count][: len(same) // count] for start in range(count)]
