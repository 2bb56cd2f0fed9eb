"""Outputs of both models in a partial result, so that the whole is measured as if it had run in one process.

Metrics of every kind are computed from the outputs, in the order of the samples. Outputs are therefore what a shard
records, and not metrics: a sum of floats depends on the order of its terms.

A batch is one member: a line of JSON that describes the arrays, and their values. It has previews of the samples, too.

Touches: nothing itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import ml_dtypes
import numpy as np

from trtopt.compare.measures.outputs import Array, Outputs
from trtopt.data.dataset import Dataset
from trtopt.data.preview import Preview
from trtopt.shards.partial import Partial, damaged

_PARTS = ("reference", "candidate", "graph", "inputs")
_PIXELS = "pixels"


def write(outputs: Outputs, file: IO[bytes]) -> None:
    """Write the outputs of one batch."""
    arrays = [(part, name, np.asarray(array)) for part in _PARTS for name, array in getattr(outputs, part).items()]
    arrays += [(_PIXELS, str(row), each.pixels) for row, each in enumerate(outputs.previews) if each.pixels is not None]
    described = [[part, name, array.dtype.name, list(array.shape)] for part, name, array in arrays]
    text = {"indices": list(outputs.indices), "previews": [each.text for each in outputs.previews], "arrays": described}
    file.write(json.dumps(text).encode() + b"\n")
    for _, _, array in arrays:
        file.write(_bytes(array))


def read(file: IO[bytes], dataset: Dataset) -> Outputs:
    """Return the outputs of one batch, with the labels of the data set.

    Raises:
        ValueError, KeyError, TypeError: they are damaged.
    """
    text = json.loads(file.readline())
    parts: dict[str, dict[str, Array]] = {part: {} for part in (*_PARTS, _PIXELS)}
    for part, name, dtype, shape in text["arrays"]:
        parts[part][name] = _array(file, dtype, tuple(shape))
    if file.read(1):
        raise ValueError("there is more than its arrays")
    indices = tuple(map(int, text["indices"]))
    labels = None if dataset.labels is None else tuple(dataset.labels[i] for i in indices)
    return Outputs(
        reference=parts["reference"],
        candidate=parts["candidate"],
        graph=parts["graph"],
        inputs=parts["inputs"],
        previews=tuple(_preview(parts[_PIXELS].get(str(row)), text) for row, text in enumerate(text["previews"])),
        indices=indices,
        labels=labels,
    )


def _preview(pixels: Array | None, text: str) -> Preview:
    return Preview(None if pixels is None else pixels.astype(np.uint8, copy=False), text)


def replayed(partials: Sequence[Partial], dataset: Dataset) -> Iterator[Outputs]:
    """Yield the outputs of all shards, batch by batch, in the order of the samples.

    Raises:
        StoreError: a partial result is damaged.
    """
    following = 0
    for partial in partials:
        for name in partial.members():
            if not name.endswith(".batch"):
                continue
            try:
                with partial.member(name) as file:
                    outputs = read(file, dataset)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise damaged(partial.path, f"{name}: {error}") from error
            if outputs.indices[:1] != (following,):
                raise damaged(partial.path, f"{name} begins with sample {outputs.indices[:1]}, not with {following}")
            following = outputs.indices[-1] + 1
            yield outputs
    if following != len(dataset):
        raise damaged(partials[-1].path, f"it ends after {following} of {len(dataset)} samples")


def fingerprints(partials: Sequence[Partial], member: str) -> Mapping[int, str]:
    """Return the fingerprints of the samples that all shards recorded."""
    found: dict[int, str] = {}
    for partial in partials:
        found |= {int(index): str(text) for index, text in json.loads(partial.read(member)).items()}
    return found


def _bytes(array: Array) -> bytes:
    if array.dtype.kind in "OUS":
        text = json.dumps([str(value) for value in array.reshape(-1).tolist()]).encode()
        return len(text).to_bytes(8, "little") + text
    return np.ascontiguousarray(array).tobytes()


def _array(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "object" or dtype.startswith(("str", "bytes")):
        values = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        texts: Any = np.empty(len(values), object)
        texts[:] = values
        shaped: Array = texts.reshape(shape)
        return shaped
    kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype, dtype))
    data = file.read(kind.itemsize * math.prod(shape))
    numbers: Array = np.frombuffer(data, kind).reshape(shape).copy()
    return numbers
