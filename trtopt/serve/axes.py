"""Proof that the first axis of every input and output of a graph is a batch, by running it.

A server joins requests along that axis. It may do so only if each row of the outputs depends on the same row of the
inputs alone.

Touches: runs the graph in onnxruntime on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtopt.bench.inputs import Sizes
from trtopt.compare import parity
from trtopt.data.dataset import Array
from trtopt.engine.onnxruntime import open_runner
from trtopt.errors import TrtoptError
from trtopt.types import OnnxModel, ShapeRange

_TOLERANCE = 0.02
"""Largest difference of a row between two batches, relative to its norm. Kernels round differently for each shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The batch axis: the largest batch; or 0, and `why` there is none."""

    largest: int
    why: str = ""


def prove(model: OnnxModel, ranges: Sequence[ShapeRange]) -> Axis:
    """Run a graph on two and on three samples, and return its batch axis.

    The first two samples change places in the second run. Their outputs must change places with them, and be the same.

    Args:
        model: the graph.
        ranges: the shapes of its dynamic inputs.
    """
    sizes = Sizes(inputs=model.inputs, ranges=tuple(ranges))
    largest, why = _range(sizes)
    if why:
        return Axis(largest=0, why=why)
    # Three samples may be more than the profile allows, which onnxruntime does not know.
    samples = parity.random(model.inputs, sizes.shapes(3)).draw()[0]
    try:
        runner = open_runner(model.path)
        two = runner.run({name: array[:2] for name, array in samples.items()})
        three = runner.run({name: array[[1, 0, 2]] for name, array in samples.items()})
    except TrtoptError as error:
        return Axis(largest=0, why=f"the graph does not run on two and three samples ({error.what})")
    return Axis(largest=0 if (why := _mixed(two, three)) else largest, why=why)


def _range(sizes: Sizes) -> tuple[int, str]:
    """Return the largest batch of the inputs, and why they have none."""
    batches = set()
    for spec in sizes.inputs:
        if not sizes.is_free(spec):
            return 0, f"the first dimension of input {spec.name} has a fixed size"
        entry = next(entry for entry in sizes.ranges if entry.name == spec.name)
        batches.add((entry.min[0], entry.max[0]))
    if not batches:
        return 0, "the model has no inputs"
    if len(batches) > 1:
        return 0, "the first dimensions of the inputs have different ranges"
    low, high = batches.pop()
    return (high, "") if low == 1 else (0, f"the smallest batch is {low}, and a single request has 1")


def _mixed(two: Mapping[str, Array], three: Mapping[str, Array]) -> str:
    """Return why rows of the outputs do not belong to rows of the inputs; empty if they do."""
    for name, left in two.items():
        right = three[name]
        if left.shape[:1] != (2,) or right.shape[:1] != (3,):
            shapes = f"{list(left.shape)} for two samples and {list(right.shape)} for three"
            return f"output {name} has no batch axis: {shapes}"
        if left.shape[1:] != right.shape[1:]:
            return f"the shape of output {name} depends on the values of the inputs"
        if not all(_same(left[i], right[1 - i]) for i in (0, 1)):
            return f"output {name} of one sample depends on the other samples"
    return ""


def _same(left: Array, right: Array) -> bool:
    if left.dtype.kind not in "fiu" or left.size == 0:
        return bool(np.array_equal(left, right))
    if left.dtype.kind in "iu":
        return bool(np.array_equal(left, right))
    finite = np.isfinite(left) & np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return False
    first, second = left[finite].astype(np.float64), right[finite].astype(np.float64)
    return float(np.linalg.norm(first - second)) <= _TOLERANCE * float(np.linalg.norm(first)) + 1e-6
