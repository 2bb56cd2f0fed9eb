"""The tasks of the models of `zoo.py`: their samples, and the task score of their outputs.

A task keeps only the part of each sample's first output that its score needs (a class, a mask, an embedding), so that a
whole evaluation set fits in memory. Scores are in percent.

Touches: reads the files of the zoo.
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
"""Models without a batch axis. A sample is a whole sequence and is fed as it is."""


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation.

    Attributes:
        kept: the kept part of the candidate's output for each sample.
        reference: the same of FP32's output.
        labels: the labels; None if there are none.
        model: the FP32 ONNX file, for its metadata.
    """

    kept: Sequence[Array]
    reference: Sequence[Array]
    labels: Array | None
    model: Path


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        metric: the name of the score.
        keep: returns the part of a sample's first output that the score needs.
        score: returns the score in percent.
        labelled: whether the score needs labels.
    """

    metric: str
    keep: Callable[[Array], Array]
    score: Callable[[Evaluated], float]
    labelled: bool = True


def feeds(zoo: Path, name: str, part: str, count: int = 0) -> Iterator[dict[str, Array]]:
    """Yield the feeds of the samples that `chosen` selects, one sample each. `part` is `calib` or `eval`."""
    with np.load(zoo / f"{name}.{part}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    for i in chosen(zoo, name, part, count):
        yield {key: array[i] if name in UNBATCHED else array[i : i + 1] for key, array in arrays.items()}


def chosen(zoo: Path, name: str, part: str, count: int = 0) -> Array:
    """Return the indices of `count` samples, evenly spread; of all samples if `count` is 0 or larger than the set."""
    with np.load(zoo / f"{name}.{part}.npz") as archive:
        size = len(archive[archive.files[0]])
    return np.arange(size) if not 0 < count < size else np.linspace(0, size - 1, count).astype(int)


def labels(zoo: Path, name: str, count: int = 0) -> Array | None:
    """Return the labels of the evaluation samples that `feeds` yields, or None if there are none."""
    path = zoo / f"{name}.labels.npy"
    if not path.exists():
        return None
    return np.asarray(np.load(path, allow_pickle=False)[chosen(zoo, name, "eval", count)])


def sqnr(signal: float, noise: float) -> float:
    """Return the SQNR in dB, from the sums of squares of the signal and of the quantization error."""
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def cosine(a: Array, b: Array) -> float:
    """Return the cosine of the angle between two arrays, flattened."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))


def _correct(evaluated: Evaluated) -> float:
    """Return the share of samples whose class is correct."""
    pairs = zip(evaluated.kept, _labels(evaluated), strict=True)
    return 100 * float(np.mean([int(kept) == label for kept, label in pairs]))


def _neighbours(evaluated: Evaluated) -> float:
    """Return the share of sentences whose five nearest neighbours vote for their class."""
    embeddings = np.stack(evaluated.kept)
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)  # a sentence does not vote for itself
    truth = _labels(evaluated)
    votes = [np.bincount(truth[near]).argmax() for near in np.argsort(-similarity, axis=1)[:, :5]]
    return 100 * float(np.mean(votes == truth))


def _lines(evaluated: Evaluated) -> float:
    """Return the share of lines that are read without an error, ignoring spaces.

    The output is CTC: repetitions count once, and class 0 is the blank.
    """
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(evaluated.model).metadata_props}
    alphabet = ["", *properties["character"].splitlines(), " "]
    correct = 0
    for kept, label in zip(evaluated.kept, _labels(evaluated), strict=True):
        changes = kept[np.insert(kept[1:] != kept[:-1], 0, True)]
        text = "".join(alphabet[index] for index in changes)
        correct += text.replace(" ", "") == str(label).replace(" ", "")
    return 100 * correct / len(evaluated.kept)


def _overlap(evaluated: Evaluated) -> float:
    """Return the intersection over union with FP32's mask, over the pixels of all samples."""
    pairs = list(zip(evaluated.kept, evaluated.reference, strict=True))
    union = sum(int((a | b).sum()) for a, b in pairs)
    return 100 * sum(int((a & b).sum()) for a, b in pairs) / max(union, 1)


def _labels(evaluated: Evaluated) -> Array:
    assert evaluated.labels is not None, "this task has labels"
    return evaluated.labels


def _top(output: Array) -> Array:
    return np.asarray(output.ravel().argmax())


TASKS = {
    "mnist": Task("top-1 %", _top, _correct),
    "efflite0": Task("top-1 %", _top, _correct),
    "minilm": Task("kNN %", lambda output: output.ravel().astype(np.float64), _neighbours),
    "ocrdet": Task("IoU with FP32 %", lambda output: output > 0.3, _overlap, labelled=False),
    "ocrrec": Task("exact lines %", lambda output: output[0].argmax(-1), _lines),
    "silero": Task("correct clips %", lambda output: np.asarray(output.mean() > 0.5), _correct),
}
