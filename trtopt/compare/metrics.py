"""Metrics of the candidate's outputs compared with the baseline's, accumulated batch by batch.

An output is measured as every kind that it may be (`trtopt.compare.kinds`) until all samples have run: only then is it
known whether a vector is a softmax, or a map contains classes. Memory does not grow with the size of the outputs. A few
bytes per sample are kept for statistics over samples.

Touches: nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from trtopt.compare.exhibits import Exhibits
from trtopt.compare.kinds import Opening, Reader, kind, kinds
from trtopt.compare.measures.outputs import Outputs, joined, without_masks
from trtopt.data.classes import score_count
from trtopt.errors import ModelError, UsageError
from trtopt.types import Exhibit, OutputDrift

_GATHERED_VALUES = 1 << 15
_GATHERED_SAMPLES = 256
"""Batches of small outputs are gathered up to these limits and measured together, because numpy's cost per call exceeds
the cost per value. Larger limits would only take more memory.
"""

_Layout = list[tuple[str, object, tuple[int, ...]]]
"""Name, dtype and shape per sample of every output."""


class Metrics:
    """Metrics of all outputs of two models: `add` takes the batches, `drifts` returns the result.

    Args:
        asked: the kinds that the user named, by output.
        apart: every output has one row per sample, so batches may be joined.
        plain: read outputs as `values` or `exact` only.
        names: the names of classes, by index.
        classes: the number of classes that the samples' labels index; 0 without labels.
    """

    def __init__(
        self,
        asked: Mapping[str, str],
        *,
        apart: bool = False,
        plain: bool = False,
        names: Mapping[int, str] | None = None,
        classes: int = 0,
    ) -> None:
        self._names = names or {}
        self._classes = classes
        self._exhibits = Exhibits(self._names)
        self._asked = dict(asked)
        self._apart = apart
        self._kinds = [module for module in map(kind, kinds()) if module.PLAIN or not plain]
        self._gathered: list[Outputs] = []
        self._gathered_layout: _Layout | None = None
        self._gathered_values = self._gathered_samples = 0
        self._readers: dict[str, list[Reader]] = {}
        self._errors: dict[str, ModelError] = {}

    def add(self, batch: Outputs) -> None:
        """Add the outputs for some samples.

        Raises:
            ModelError: an output of the candidate is missing, or cannot be compared with FP32's.
            UsageError: the user named an unknown output, or a kind that does not fit the output.
        """
        for name in batch.reference:
            if name not in batch.candidate:
                raise ModelError(
                    f"the candidate has no output {name}",
                    why=f"its outputs are {', '.join(batch.candidate)}",
                    fix="Compare a model with a candidate that was made from it",
                )
        batch = without_masks(batch)
        layout = _layout(batch) if self._apart else None
        if layout != self._gathered_layout:
            self._flush()
        self._gathered.append(batch)
        self._gathered_layout = layout
        self._gathered_values += sum(array.size for array in batch.reference.values())
        self._gathered_samples += len(batch.indices)
        full = self._gathered_values >= _GATHERED_VALUES or self._gathered_samples >= _GATHERED_SAMPLES
        # The first batch is measured immediately, so that errors are reported early.
        if full or layout is None or not self._readers:
            self._flush()

    def drifts(self, ids: Sequence[str]) -> tuple[OutputDrift, ...]:
        """Return the metrics of every output, in order. Outputs that are read together have one entry.

        `ids` are the names of the dataset's samples.

        Raises:
            ModelError: an output is not of the kind that the user named, or cannot be compared with FP32's.
        """
        chosen = self._chosen()
        return tuple(reader.drift(ids) for reader in chosen.values())

    def exhibits(self, drifts: Sequence[OutputDrift], ids: Sequence[str]) -> tuple[Exhibit, ...]:
        """Return the worst samples of `drifts`, to show them. There are none if the batches had no previews."""
        return self._exhibits.shown(drifts, ids)

    def notes(self) -> list[str]:
        """Return remarks on how the outputs were read."""
        return [reader.note for reader in self._chosen().values() if reader.note]

    def _chosen(self) -> dict[str, Reader]:
        """Return the first reader of each output that fits all samples."""
        self._flush()
        fitting = {name: next((r for r in readers if r.fits()), None) for name, readers in self._readers.items()}
        # Outputs that another output's reader includes.
        included = {other for reader in fitting.values() if reader is not None for other in reader.reads}
        chosen = {}
        for name, reader in fitting.items():
            if name in included:
                continue
            if reader is None:
                raise self._errors.get(name) or _not_of(name, self._asked[name])
            chosen[name] = reader
        return chosen

    def _flush(self) -> None:
        """Measure the gathered batches."""
        if not self._gathered:
            return
        batch = joined(self._gathered)
        self._gathered, self._gathered_values, self._gathered_samples = [], 0, 0
        if not self._readers:
            self._readers = self._opened(batch)
        for name, readers in self._readers.items():
            self._readers[name] = [reader for reader in readers if self._accepts(name, reader, batch)]
        self._exhibits.add(batch, (reader for readers in self._readers.values() for reader in readers))
        # An output without a reader is an error, unless the reader of another output may include it.
        claimed = {other for readers in self._readers.values() for reader in readers for other in reader.reads}
        for name, readers in self._readers.items():
            if not readers and name not in claimed:
                raise self._errors[name]

    def _accepts(self, name: str, reader: Reader, batch: Outputs) -> bool:
        """Add the batch and return True; keep the error and return False if the reader cannot read it."""
        try:
            reader.add(batch)
        except ModelError as error:
            self._errors[name] = error
            return False
        return True

    def _opened(self, first: Outputs) -> dict[str, list[Reader]]:
        """Return the possible readers of every output, given the first batch."""
        for name in self._asked:
            if name not in first.reference:
                near = difflib.get_close_matches(name, first.reference, 1)
                raise UsageError(
                    f"--kind names an unknown output {name!r}",
                    fix=f"Did you mean {near[0]}?" if near else f"The outputs are: {', '.join(first.reference)}",
                )
        return {name: self._open(name, first) for name in first.reference}

    def _open(self, name: str, first: Outputs) -> list[Reader]:
        beside = tuple(other for other in first.reference if other != name and other not in self._asked)
        if name in self._asked:
            module = kind(self._asked[name])
            reader = module.reader(Opening(name=name, first=first, asked=True, beside=beside, names=self._names))
            if reader is None:
                array = first.reference[name]
                raise UsageError(
                    f"output {name} cannot be read as {self._asked[name]}",
                    why=f"it is {array.dtype.name} {list(array.shape)}, and {self._asked[name]} takes {module.TAKES}",
                )
            return [reader]
        sizes = {other: score_count(array.shape[1:]) for other, array in first.reference.items()}
        labelled = self._classes > 1 and [other for other in sizes if sizes[other] == self._classes] == [name]
        opening = Opening(name=name, first=first, beside=beside, names=self._names, labelled=labelled)
        # Specific kinds come before those that accept everything.
        modules = sorted(self._kinds, key=lambda module: module.PLAIN)
        return [reader for module in modules if (reader := module.reader(opening)) is not None]


def _not_of(name: str, kind: str) -> ModelError:
    return ModelError(
        f"output {name} cannot be read as {kind}",
        why="its shape differs between samples",
        fix=f"Leave --kind {name}={kind} out",
    )


def _layout(batch: Outputs) -> _Layout | None:
    """Return the layout of the outputs; batches of the same layout can be joined.

    It is None if an output does not have one row per sample.
    """
    arrays = [*batch.reference.items(), *batch.candidate.items()]
    apart = all(array.shape[:1] == (len(batch.indices),) for _, array in arrays)
    return [(name, array.dtype, array.shape[1:]) for name, array in arrays] if apart else None
