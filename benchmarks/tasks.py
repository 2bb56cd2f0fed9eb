"""What the models of `zoo.py` are for: their samples, and the score of their outputs on the task itself.

A task keeps of each sample's first output only what its score needs (a class, a mask, an embedding), so that a whole
evaluation set fits in memory. Scores are in percent.

Touches: reads the zoo's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
UNBATCHED = frozenset({"silero"})
"""Models without a batch axis: a sample is fed as it is, and is a whole sequence."""


@dataclass(frozen=True)
class Evaluated:
    """What was kept of every sample: of the candidate's outputs, of FP32's; and the labels, None without any.

    `model` is the FP32 ONNX file, for what stands in its metadata.
    """

    kept: Sequence[Array]
    reference: Sequence[Array]
    labels: Array | None
    model: Path


@dataclass(frozen=True)
class Task:
    """`metric` names the score; `keep` is applied to each sample's first output; `score` is in percent."""

    metric: str
    keep: Callable[[Array], Array]
    score: Callable[[Evaluated], float]


def feeds(zoo: Path, name: str, part: str, count: int = 0) -> Iterator[dict[str, Array]]:
    """Feeds of one sample each, of `part` `calib` or `eval`: those at `chosen(...)`."""
    with np.load(zoo / f"{name}.{part}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    for i in chosen(zoo, name, part, count):
        yield {key: array[i] if name in UNBATCHED else array[i : i + 1] for key, array in arrays.items()}


def chosen(zoo: Path, name: str, part: str, count: int = 0) -> Array:
    """Indices of `count` samples, evenly spread; of all when `count` is 0 or more than there are."""
    with np.load(zoo / f"{name}.{part}.npz") as archive:
        size = len(archive[archive.files[0]])
    return np.arange(size) if not 0 < count < size else np.linspace(0, size - 1, count).astype(int)


def labels(zoo: Path, name: str, count: int = 0) -> Array | None:
    """Labels of the evaluation samples that `feeds` gives, or None."""
    path = zoo / f"{name}.labels.npy"
    if not path.exists():
        return None
    return np.asarray(np.load(path, allow_pickle=False)[chosen(zoo, name, "eval", count)])


def sqnr(signal: float, noise: float) -> float:
    """Signal-to-quantization-noise ratio in dB, from the sums of squares of the signal and of the difference."""
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def cosine(a: Array, b: Array) -> float:
    """Cosine of the angle between two arrays, flattened."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))


def _right(found: Evaluated) -> float:
    return 100 * float(np.mean([int(kept) == label for kept, label in zip(found.kept, _labels(found), strict=True)]))


def _neighbours(found: Evaluated) -> float:
    """Share of sentences whose five nearest others vote for their class."""
    embeddings = np.stack(found.kept)
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    truth = _labels(found)
    votes = [np.bincount(truth[near]).argmax() for near in np.argsort(-similarity, axis=1)[:, :5]]
    return 100 * float(np.mean(votes == truth))


def _lines(found: Evaluated) -> float:
    """Share of lines read without an error, spaces aside (CTC: repetitions are one, class 0 is none)."""
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(found.model).metadata_props}
    alphabet = ["", *properties["character"].splitlines(), " "]
    right = 0
    for kept, label in zip(found.kept, _labels(found), strict=True):
        changes = kept[np.insert(kept[1:] != kept[:-1], 0, True)]
        text = "".join(alphabet[index] for index in changes)
        right += text.replace(" ", "") == str(label).replace(" ", "")
    return 100 * right / len(found.kept)


def _overlap(found: Evaluated) -> float:
    """Intersection over union with FP32's mask, over the pixels of all samples."""
    pairs = list(zip(found.kept, found.reference, strict=True))
    union = sum(int((a | b).sum()) for a, b in pairs)
    return 100 * sum(int((a & b).sum()) for a, b in pairs) / max(union, 1)


def _labels(found: Evaluated) -> Array:
    assert found.labels is not None, "this task has labels"
    return found.labels


def _top(output: Array) -> Array:
    return np.asarray(output.ravel().argmax())


TASKS = {
    "mnist": Task("top-1 %", _top, _right),
    "efflite0": Task("top-1 %", _top, _right),
    "minilm": Task("kNN %", lambda output: output.ravel().astype(np.float64), _neighbours),
    "ocrdet": Task("IoU with FP32 %", lambda output: output > 0.3, _overlap),
    "ocrrec": Task("lines exact %", lambda output: output[0].argmax(-1), _lines),
    "silero": Task("clips right %", lambda output: np.asarray(output.mean() > 0.5), _right),
}
