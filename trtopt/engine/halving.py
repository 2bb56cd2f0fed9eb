"""Run joined samples in smaller batches once the memory is exhausted, with a notice, instead of giving up.

Touches: nothing itself; the runner runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trtopt.data.dataset import Dataset
from trtopt.errors import OutOfMemoryError
from trtopt.events import Emit, Warned

Array = npt.NDArray[np.generic]


class Runner(Protocol):
    """Anything that runs a model: `where` says where, in words for a table."""

    @property
    def where(self) -> str:
        """What runs, and where."""
        ...

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs, by name, for one feed."""
        ...


def halving(runner: Runner, dataset: Dataset, emit: Emit) -> Runner:
    """The runner, made to halve the batches of this dataset when memory is exhausted; as it is where samples are not
    joined.
    """
    return _Halving(runner, emit) if dataset.batched else runner


class _Halving:
    """Feeds are samples joined along the first axis of every input."""

    def __init__(self, runner: Runner, emit: Emit) -> None:
        self.where = runner.where
        self._runner, self._emit = runner, emit
        self._limit = 0  # samples of a run; 0: as many as are given

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of all samples of a feed.

        Raises:
            OutOfMemoryError: the memory does not hold one sample, or an output has not one row for each sample.
        """
        size = min((len(array) for array in feed.values() if array.ndim), default=1)
        if not self._limit or size <= self._limit:
            try:
                return dict(self._runner.run(feed))
            except OutOfMemoryError:
                if size < 2:
                    raise
            self._limit = size // 2
            self._emit(Warned(f"the memory does not hold {size} samples a run: {self._limit} from now on"))
        parts: list[dict[str, Array]] = []
        step = self._limit  # a part may halve the limit again
        for low in range(0, size, step):
            rows = min(step, size - low)
            parts.append(self.run({name: array[low : low + rows] for name, array in feed.items()}))
            if mixed := [name for name, array in parts[-1].items() if array.shape[:1] != (rows,)]:
                raise OutOfMemoryError(
                    f"the memory does not hold {size} samples a run",
                    why=f"they cannot be run in parts, as output {mixed[0]} has not one row for each",
                )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
