"""What a target is fed with at each batch size: its inputs' shapes, and random or real samples in them.

Touches: nothing; a dataset's `load` reads its files.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from trtopt.compare import parity
from trtopt.data.dataset import Dataset, Feed
from trtopt.types import ShapeRange, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The inputs of a target, and a range of shapes for each dynamic one."""

    inputs: tuple[TensorSpec, ...]
    ranges: tuple[ShapeRange, ...]

    @property
    def batch(self) -> int:
        """The batch size that the target is fixed at; 0 where it is free.

        The batch is the first dimension of the inputs: free where one has a range. Where all of them have the same
        size it is that; where they differ (a network over time, with states) the network takes one sample.
        """
        if any(self.is_free(spec) for spec in self.inputs):
            return 0
        firsts = {self._opt(spec)[:1] for spec in self.inputs}
        return next(iter(firsts))[0] if len(firsts) == 1 and firsts != {()} else 1

    def shapes(self, batch: int) -> tuple[ShapeRange, ...]:
        """The one shape of every input at a batch size; other dynamic dimensions have their usual size."""
        found = []
        for spec in self.inputs:
            usual = self._opt(spec)
            shape = (batch, *usual[1:]) if self.is_free(spec) else usual
            found.append(ShapeRange(name=spec.name, min=shape, opt=shape, max=shape))
        return tuple(found)

    def _range(self, spec: TensorSpec) -> ShapeRange | None:
        return next((entry for entry in self.ranges if entry.name == spec.name), None)

    def is_free(self, spec: TensorSpec) -> bool:
        """Whether the first dimension of an input is the batch, and may change."""
        entry = self._range(spec)
        return entry is not None and bool(entry.min) and entry.min[0] < entry.max[0]

    def _opt(self, spec: TensorSpec) -> tuple[int, ...]:
        entry = self._range(spec)
        return entry.opt if entry is not None else tuple(int(dim) for dim in spec.shape)


def random(sizes: Sizes, batch: int) -> Feed:
    """A random sample, the same one each time, repeated to that batch size; whole numbers are valid ids and masks."""
    sample = parity.random(sizes.inputs, sizes.shapes(1)).draw()[0]
    return {
        spec.name: np.repeat(sample[spec.name], batch, axis=0) if sizes.is_free(spec) else sample[spec.name]
        for spec in sizes.inputs
    }


def from_data(dataset: Dataset, batch: int) -> Feed:
    """The first samples of a dataset, joined to that batch size; from the first again when they are too few.

    Samples that cannot be joined are fed one at a time, whatever the batch size.

    Raises:
        DataError: a sample cannot be loaded.
    """
    if not dataset.batched:
        return dataset.load(0)
    samples = [dataset.load(i) for i in range(min(batch, len(dataset)))]
    chosen = list(itertools.islice(itertools.cycle(samples), batch))
    return {name: np.concatenate([sample[name] for sample in chosen]) for name in samples[0]}
