"""Samples from Python objects: arrays, dicts of arrays, iterables of samples, and loaders that yield batches.

    array                      the first input; the first axis is that of the samples
    dict of arrays             by input name; the first axis is that of the samples; `labels` are class indices
    iterable, or a function    one sample each: a dict of arrays, an array, or a tuple of arrays in the order of the
    that returns one           inputs, with the class index last
    loader with `batch_size`   the same, but each is a batch: a `torch.utils.data.DataLoader`

Touches: a temporary file, in which samples that are not arrays already are kept (`trtopt.data.python`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtopt.data.dataset import Array
from trtopt.data.python import spooled
from trtopt.data.sample import LABEL_KEYS, Samples
from trtopt.errors import DataError
from trtopt.types import TensorSpec

_LABEL = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Samples as Python objects: `samples` returns them, and `batched` says that each of them is a batch.

    `name` is what reports call them.
    """

    name: str
    samples: Callable[[], Iterable[Any]]
    batched: bool = False

    def __str__(self) -> str:
        return self.name


def given(name: str, data: object) -> Given:
    """Return Python objects as a source of samples. What an iterator yields is kept in memory.

    Raises:
        DataError: the object is not a source of samples.
    """
    if isinstance(data, Mapping) or hasattr(data, "__array__"):
        return Given(name=name, samples=lambda: [data], batched=True)
    if callable(data) and not isinstance(data, Iterable):
        return Given(name=name, samples=data)
    if isinstance(data, Iterator):
        data = list(data)  # samples are read more than once
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return Given(name=name, samples=lambda: data, batched=getattr(data, "batch_size", None) is not None)
    raise DataError(
        f"{name}: {type(data).__name__} is not a source of samples",
        fix="Give a path, an array, a dict of arrays by input name, an iterable of samples, or a DataLoader",
    )


def read_given(source: Given, inputs: tuple[TensorSpec, ...]) -> Samples:
    """Return the samples of Python objects.

    Raises:
        DataError: they fail, or are anything but arrays.
    """
    return spooled(source.name, lambda: _samples(source, inputs), inputs, notes=())


def _samples(source: Given, inputs: tuple[TensorSpec, ...]) -> Iterator[dict[str, Array]]:
    for item in source.samples():
        by_name = _by_name(item, inputs, source.name)
        if not source.batched:
            yield by_name
            continue
        lengths = {name: len(array) if array.ndim else 0 for name, array in by_name.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{source.name}: the arrays have different numbers of samples", why=str(lengths))
        for row in range(next(iter(lengths.values()))):
            yield {name: array[row] for name, array in by_name.items()}


def _by_name(item: object, inputs: tuple[TensorSpec, ...], where: str) -> dict[str, Array]:
    """Return a sample, or a batch of them, as arrays by input name; those of labels are named `label`."""
    names = [spec.name for spec in inputs]
    if isinstance(item, Mapping):
        labels = [key for key in LABEL_KEYS if key in item and key not in names]
        return {_LABEL if key in labels else str(key): _array(value) for key, value in item.items()}
    if not isinstance(item, Sequence) or hasattr(item, "__array__"):
        return {names[0]: _array(item)}
    if len(item) not in (len(names), len(names) + 1):
        raise DataError(
            f"{where}: a sample has {len(item)} arrays",
            why=f"the model has {len(names)} inputs, {', '.join(names)}, and a label may follow",
        )
    return dict(zip([*names, _LABEL], map(_array, item), strict=False))


def _array(value: Any) -> Array:
    """Return a tensor of any framework as an array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
