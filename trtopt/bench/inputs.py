"""Inputs of a target at each batch size: their shapes, and random or real samples of these shapes.

Touches: nothing; a dataset's `load` reads its files.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from trtopt.data.dataset import Dataset, Feed
from trtopt.types import ShapeRange, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Inputs of a target, with a range of shapes for each dynamic one."""

    inputs: tuple[TensorSpec, ...]
    ranges: tuple[ShapeRange, ...]

    @property
    def batch(self) -> int:
        """Fixed batch size of the target, or 0 if the batch size is free.

        The batch is the first dimension of the inputs. It is free if it has a range in any input. If all inputs have
        the same first size, that is the batch size. If the sizes differ, as in a network over time with states, the
        first dimension is not a batch and one run takes one sample.
        """
        if any(self.is_free(spec) for spec in self.inputs):
            return 0
        first_dims = {self._opt(spec)[:1] for spec in self.inputs}  # () for a scalar input
        if len(first_dims) == 1 and first_dims != {()}:
            return next(iter(first_dims))[0]
        return 1

    def shapes(self, batch: int) -> tuple[ShapeRange, ...]:
        """Return the single shape of every input at a batch size. Other dynamic dimensions get their usual size."""
        ranges = []
        for spec in self.inputs:
            usual = self._opt(spec)
            shape = (batch, *usual[1:]) if self.is_free(spec) else usual
            ranges.append(ShapeRange(name=spec.name, min=shape, opt=shape, max=shape))
        return tuple(ranges)

    def _range(self, spec: TensorSpec) -> ShapeRange | None:
        return next((entry for entry in self.ranges if entry.name == spec.name), None)

    def is_free(self, spec: TensorSpec) -> bool:
        """Return whether the first dimension of an input is a batch of variable size."""
        entry = self._range(spec)
        return entry is not None and bool(entry.min) and entry.min[0] < entry.max[0]

    def _opt(self, spec: TensorSpec) -> tuple[int, ...]:
        entry = self._range(spec)
        return entry.opt if entry is not None else tuple(int(dim) for dim in spec.shape)


def random(sizes: Sizes, batch: int) -> Feed:
    """Return a random sample repeated to the batch size. It is the same in each call.

    Integer inputs are 0 or 1, which are valid as token ids and as masks.
    """
    from trtopt.compare import parity

    sample = parity.random(sizes.inputs, sizes.shapes(1)).draw()[0]
    return {
        spec.name: np.repeat(sample[spec.name], batch, axis=0) if sizes.is_free(spec) else sample[spec.name]
        for spec in sizes.inputs
    }


def from_data(dataset: Dataset, batch: int) -> Feed:
    """Return the first samples of a dataset joined to the batch size, starting over if there are too few.

    Samples that cannot be joined are fed singly, whatever the batch size.

    Raises:
        DataError: a sample cannot be loaded.
    """
    if not dataset.batched:
        return dataset.load(0)
    samples = [dataset.load(i) for i in range(min(batch, len(dataset)))]
    repeated = list(itertools.islice(itertools.cycle(samples), batch))
    return {name: np.concatenate([sample[name] for sample in repeated]) for name in samples[0]}
