"""A first run of a model: its outputs for one sample, and whether samples may be joined into batches.

Touches: the runner; reads a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trtopt.compare.rows import keeps_rows
from trtopt.data.dataset import Dataset, Feed
from trtopt.errors import DataError, TrtoptError
from trtopt.predict.answers import Array
from trtopt.predict.lanes import Runner, padded
from trtopt.types import OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to predict with.

    Attributes:
        runner: runs it.
        described: its inputs and outputs.
        fixed: the batch that the model is fixed at; 0 if it is dynamic.
        streams: the number of batches at a time.
    """

    runner: Runner
    described: OnnxModel
    fixed: int = 0
    streams: int = 1

    @property
    def least(self) -> int:
        """The smallest batch that the model runs."""
        return self.fixed or int(getattr(self.runner, "min_batch", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Findings about a model from one sample.

    Attributes:
        outputs: the outputs for one sample.
        rowed: the outputs whose first axis is that of the samples.
        joinable: samples may be joined into batches.
        bytes: size of the inputs and outputs of one sample.
    """

    outputs: Mapping[str, Array]
    rowed: frozenset[str]
    joinable: bool
    bytes: int


def probe(model: Model, dataset: Dataset) -> Probe:
    """Run the first sample that can be loaded, alone and beside another one.

    Raises:
        DataError: no sample can be loaded and run; the message is about the first one.
    """
    first: TrtoptError | None = None
    for index in range(len(dataset)):
        try:
            feed = dataset.load(index)
            outputs = model.runner.run(padded(feed, model.least))
        except DataError as error:
            first = first or error
            continue
        return _probed(model, feed, outputs)
    raise DataError(f"{dataset.source}: no sample can be used", why=f"the first because {first}") from first


def _probed(model: Model, feed: Feed, outputs: Mapping[str, Array]) -> Probe:
    """Return what a sample and its outputs show."""
    batched = all(array.shape[:1] == (1,) for array in feed.values())
    if model.fixed > 1:
        rowed = frozenset(name for name, array in outputs.items() if array.shape[:1] == (model.fixed,))
        joinable = batched and len(rowed) == len(outputs)
    else:
        joinable = batched and not model.fixed and model.least == 1 and keeps_rows(model.runner, feed, _beside(feed))
        named = {spec.name: spec.shape[:1] for spec in model.described.outputs}
        first = {spec.shape[:1] for spec in model.described.inputs}
        rowed = frozenset(
            name
            for name, array in outputs.items()
            if joinable or (batched and array.shape[:1] == (1,) and named.get(name) in ({(1,)} | first))
        )
    single = {name: array[:1] if name in rowed else array for name, array in outputs.items()}
    size = sum(array.nbytes for array in (*feed.values(), *single.values()))
    return Probe(outputs=single, rowed=rowed, joinable=joinable, bytes=size)


def _beside(feed: Feed) -> Feed:
    """Return a sample beside another one: its own values in the opposite order."""
    return {name: np.concatenate([array, np.flip(array, axis=-1)]) for name, array in feed.items()}
