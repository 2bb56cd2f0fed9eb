"""How far a candidate's outputs are from the baseline's, accumulated batch by batch.

Memory does not grow with the size of the outputs; a few numbers a sample are kept, for the worst samples and for
statistics on accuracy.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trtopt.errors import ModelError

Array = npt.NDArray[np.generic]
TOP5_CLASSES = 10
"""Below this many classes the candidate's top 5 holds the baseline's choice too easily to say anything."""

METRICS = {
    "top1": "top-1 agreement with FP32, or the drop of top-1 accuracy where there are labels; %",
    "top5": "share of samples whose FP32 top-1 class is among the candidate's five best; %",
    "accuracy_fp32": "top-1 accuracy of FP32; %",
    "accuracy": "top-1 accuracy of the candidate; %",
    "cosine": "cosine similarity with FP32, mean over samples",
    "sqnr": "signal to quantization noise, 10 log10(sum ref^2 / sum (ref - cand)^2) over all samples; dB",
    "rmse": "root of the mean squared error",
    "max_abs": "largest absolute error",
    "mean_abs": "mean absolute error",
    "equal": "share of equal elements; %",
    "nonfinite": "samples in which a NaN or Inf appeared",
}


@dataclass(slots=True)
class OutputMetrics:
    """Accumulates one output; feed it with `add`, read it with `values`.

    `kind` is `scores`, `values` or `exact` (see `OutputDrift`). `hits`, kept where there are labels, has two booleans
    a sample: FP32 right, candidate right. `agree` has one boolean a sample. `noise` is each sample's error energy
    relative to its signal energy.
    """

    name: str
    kind: str
    samples: int = 0
    bad_samples: list[int] = field(default_factory=list)
    agree: list[bool] = field(default_factory=list)
    hits: list[tuple[bool, bool]] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    _top5: int = 0
    _has_top5: bool = False
    _signal: float = 0.0
    _error: float = 0.0
    _absolute: float = 0.0
    _largest: float = 0.0
    _elements: int = 0
    _equal: int = 0
    _cosine: float = 0.0

    def add(
        self, reference: Array, candidate: Array, indices: tuple[int, ...], labels: tuple[int, ...] | None = None
    ) -> None:
        """Take one batch of both outputs. `indices` are the samples in it; `labels` their classes.

        Raises:
            ModelError: the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ModelError(
                f"output {self.name} has another shape in the candidate",
                why=f"{list(reference.shape)} in FP32, {list(candidate.shape)} in the candidate",
                fix="Compare a model with what was made from it",
            )
        count = len(indices)
        rows = reference.shape[0] == count if reference.ndim else count == 1
        # Outputs that are not one row a sample (time, detections) are looked at as a whole.
        ref = reference.reshape(count, -1) if rows else reference.reshape(1, -1)
        cand = candidate.reshape(count, -1) if rows else candidate.reshape(1, -1)
        self.samples += count
        self._elements += ref.size
        self._equal += int(np.count_nonzero(ref == cand))
        if self.kind == "exact":
            return
        x, y = ref.astype(np.float64), cand.astype(np.float64)
        finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        if not finite.all():
            self.bad_samples += [indices[i if rows else 0] for i in np.flatnonzero(~finite)]
        self._add_errors(x[finite], y[finite])
        if self.kind == "scores" and rows:
            self._add_classes(reference[finite], candidate[finite], np.flatnonzero(finite), labels)

    def _add_errors(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> None:
        difference = np.abs(x - y)
        signal, error = (x * x).sum(axis=1), (difference * difference).sum(axis=1)
        self._signal += float(signal.sum())
        self._error += float(error.sum())
        self._absolute += float(difference.sum())
        self._largest = max(self._largest, float(difference.max(initial=0.0)))
        norms = np.sqrt(signal * (y * y).sum(axis=1))
        both_zero = (signal == 0) & (error == 0)  # two zero vectors point the same way
        cosine = np.divide((x * y).sum(axis=1), norms, out=both_zero.astype(np.float64), where=norms > 0)
        self._cosine += float(np.clip(cosine, -1, 1).sum())
        self.noise += np.divide(error, signal, out=np.where(error > 0, np.inf, 0.0), where=signal > 0).tolist()

    def _add_classes(
        self, reference: Array, candidate: Array, rows: npt.NDArray[np.intp], labels: tuple[int, ...] | None
    ) -> None:
        best, chosen = reference.argmax(axis=-1), candidate.argmax(axis=-1)
        self.agree += (best == chosen).reshape(len(rows), -1).all(axis=1).tolist()
        if reference.ndim == 2 and reference.shape[1] >= TOP5_CLASSES:
            five = np.argpartition(-candidate.astype(np.float64), 5, axis=1)[:, :5]
            self._top5 += int((five == best[:, None]).any(axis=1).sum())
            self._has_top5 = True
        if labels is not None and reference.ndim == 2:
            truth = np.asarray(labels)[rows]
            self.hits += list(zip((best == truth).tolist(), (chosen == truth).tolist(), strict=True))

    def values(self) -> dict[str, float]:
        """Return every metric that this output has, by name, in the units of `METRICS`."""
        if self.kind == "exact":
            return {"equal": 100.0 * self._equal / self._elements if self._elements else 0.0}
        found: dict[str, float] = {}
        judged = self.samples - len(self.bad_samples)
        if self.hits:
            right = np.mean(self.hits, axis=0) * 100.0
            found["accuracy_fp32"], found["accuracy"] = float(right[0]), float(right[1])
        if self.agree:
            found["top1"] = 100.0 * float(np.mean(self.agree))
        if self._has_top5:
            found["top5"] = 100.0 * self._top5 / len(self.agree)
        if judged and self.noise:
            count = self._elements * judged / self.samples
            found["cosine"] = self._cosine / len(self.noise)
            found["sqnr"] = _decibel(self._signal, self._error)
            found["rmse"] = math.sqrt(self._error / count)
            found["max_abs"] = self._largest
            found["mean_abs"] = self._absolute / count
        found["nonfinite"] = float(len(self.bad_samples))
        return found


def _decibel(signal: float, error: float) -> float:
    if not error:
        return math.inf
    return 10.0 * math.log10(signal / error) if signal else -math.inf


def output_kind(name: str, reference: Array, samples: int, *, labelled: bool) -> str:
    """How to read an output, from its first batch.

    Integers and booleans are compared exactly. A float output with one row a sample and at least two columns holds
    class scores when there are labels, when its rows are a softmax (non-negative, sum 1), or when its name says so
    (logits, scores, probabilities, classes, softmax); everything else holds plain values.
    """
    if not np.issubdtype(reference.dtype, np.floating) and reference.dtype.name != "bfloat16":
        return "exact"
    if reference.ndim == 2 and reference.shape[0] == samples and reference.shape[1] >= 2:
        rows = reference.astype(np.float64)
        softmax = bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3))
        if labelled or softmax or re.search("logit|score|prob|class|softmax", name.lower()):
            return "scores"
    return "values"
