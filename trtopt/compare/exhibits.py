"""The worst samples, with their inputs and the answers of both models, to show in a report.

Which samples are the worst is known only at the end. So those that are the worst so far are kept: a few per output.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trtopt.compare.kinds import Reader
from trtopt.compare.measures.outputs import Array, Outputs, Rows, is_float
from trtopt.data.preview import Preview, beginning, data_uri
from trtopt.types import Answer, ClassScore, Exhibit, OutputDrift

SHOWN = 8
"""Largest number of samples in a report."""

_KEPT = 24
"""Number of samples kept per reader: the order of the worst changes while samples are added."""

_TOP = 3
_MOST_OUTPUTS = 4


@dataclass(frozen=True, slots=True)
class _Kept:
    """A sample that may be one of the worst: its preview, its label, and the answers as if outputs held class scores
    and as if not.
    """

    preview: Preview
    label: int | None
    classes: Mapping[str, Answer]
    values: Mapping[str, Answer]


@dataclass(slots=True)
class Exhibits:
    """Collection of the samples that are the worst so far. `names` are those of classes, by index."""

    names: Mapping[int, str] = field(default_factory=dict)
    _kept: dict[int, _Kept] = field(default_factory=dict)

    def add(self, batch: Outputs, readers: Iterable[Reader]) -> None:
        """Keep samples of a batch that the readers, which have read it, count among the worst; drop those that are not.

        Without previews in the batch, nothing is kept.
        """
        if not batch.previews:
            return
        wanted = set().union(*(reader.suspects(_KEPT) for reader in readers))
        self._kept = {index: kept for index, kept in self._kept.items() if index in wanted}
        for row, index in enumerate(batch.indices):
            if index in wanted and index not in self._kept:
                self._kept[index] = self._taken(batch, row)

    def _taken(self, batch: Outputs, row: int) -> _Kept:
        classes, values = {}, {}
        for name in list(batch.reference)[:_MOST_OUTPUTS]:
            pair = [_of_sample(outputs[name], row, batch) for outputs in (batch.reference, batch.candidate)]
            if _is_vector(pair[0]) and pair[0].shape == pair[1].shape:
                fp32, candidate = (self._top(scores) for scores in pair)
                classes[name] = Answer(output=name, fp32=fp32, candidate=candidate, figures=_figures(batch, name, row))
            fp32_values, candidate_values = map(beginning, pair)
            values[name] = Answer(
                output=name,
                fp32_values=fp32_values,
                candidate_values=candidate_values,
                figures=_figures(batch, name, row),
            )
        label = None if batch.labels is None else batch.labels[row]
        return _Kept(batch.previews[row], label, classes, values)

    def _top(self, scores: Array) -> tuple[ClassScore, ...]:
        """Return the classes with the highest scores; NaN is the lowest."""
        flat = np.nan_to_num(np.asarray(scores, np.float64).reshape(-1), nan=-np.inf)
        best = np.argsort(-flat, kind="stable")[:_TOP].tolist()
        return tuple(ClassScore(index=i, name=self.names.get(i, ""), score=float(flat[i])) for i in best)

    def shown(self, drifts: Sequence[OutputDrift], ids: Sequence[str]) -> tuple[Exhibit, ...]:
        """Return the worst samples.

        Those with another class than FP32 come first, and then the worst of each output, the second worst of each, ...
        """
        longest = max((len(drift.worst) for drift in drifts), default=0)
        order = [drift.worst[place].index for place in range(longest) for drift in drifts if place < len(drift.worst)]
        scored = [drift.output for drift in drifts if drift.kind == "scores"]
        changed = sorted((index for index in self._kept if self._changed(index, scored)), key=self._sqnr)
        chosen = [index for index in dict.fromkeys((*changed, *order)) if index in self._kept][:SHOWN]
        return tuple(self._exhibit(index, ids[index], drifts) for index in chosen)

    def _sqnr(self, index: int) -> float:
        """Return the lowest SQNR of the outputs for a sample."""
        return min((answer.figures.get("sqnr", math.inf) for answer in self._kept[index].values.values()), default=0.0)

    def _changed(self, index: int, scored: Sequence[str]) -> bool:
        """Return whether the candidate chose another class than FP32 at one of the outputs."""
        answers = [self._kept[index].classes[name] for name in scored if name in self._kept[index].classes]
        return any(answer.fp32[0].index != answer.candidate[0].index for answer in answers)

    def _exhibit(self, index: int, sample: str, drifts: Sequence[OutputDrift]) -> Exhibit:
        kept = self._kept[index]
        answers = [
            (kept.classes if drift.kind == "scores" and drift.output in kept.classes else kept.values)[drift.output]
            for drift in drifts
            if drift.output in kept.values
        ]
        label = "" if kept.label is None else self.names.get(kept.label) or str(kept.label)
        pixels = kept.preview.pixels
        return Exhibit(
            sample=sample,
            index=index,
            label=label,
            image="" if pixels is None else data_uri(pixels),
            inputs=kept.preview.text,
            answers=tuple(answers),
        )


def _of_sample(array: Array, row: int, batch: Outputs) -> Array:
    """Return the values of one sample; the output of a sample that was fed alone may lack a batch axis."""
    return np.asarray(array[row]) if array.shape[:1] == (len(batch.indices),) else np.asarray(array)


def _is_vector(array: Array) -> bool:
    """Return whether the values of a sample may be scores of two or more classes."""
    return is_float(array) and array.size > 1 and sum(side > 1 for side in array.shape) == 1


def _figures(batch: Outputs, name: str, row: int) -> dict[str, float]:
    """Return metrics of one sample; none where values cannot be subtracted."""
    reference, candidate = batch.reference[name], batch.candidate[name]
    if reference.shape != candidate.shape or (reference.dtype.kind not in "fiub" and not is_float(reference)):
        return {}
    rows: Rows = batch.rows(name)
    if not rows.comparable[row]:
        return {}
    signal, error = float(rows.signal[row]), float(rows.error[row])
    sqnr = math.inf if not error else -math.inf if not signal else 10.0 * math.log10(signal / error)
    figures = {"sqnr": sqnr, "max_abs": float(rows.largest[row])}
    return figures if is_float(reference) else {"max_abs": figures["max_abs"]}
