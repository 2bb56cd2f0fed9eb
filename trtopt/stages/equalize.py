"""The stage `equalize`: channels of activations are equalized where a trial shows a gain.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trtopt.calibrate.ranges import Channels, subset_size
from trtopt.data.dataset import Dataset
from trtopt.formats import Format
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.trial import adopt, decibels, output_error, scratch, survey
from trtopt.types import OnnxModel
from trtopt.wording import counted

WORTH = 0.9
"""Equalization is kept only if the error at the outputs falls to this share or less. A smaller gain is within the
variation between samples."""


def equalize(run: Run, model: OnnxModel, dataset: Dataset, precision: str) -> OnnxModel:
    """Return the model with the ranges of its channels equalized (`equalized.onnx`); it computes the same function.

    Several ways to equalize are evaluated on a few samples, and the network without equalization as well. The one with
    the smallest error at the network's outputs is used, because a smaller error in each layer does not guarantee a
    smaller error at the outputs. `precision` is what the network will be quantized to.
    """

    def make(folder: Path) -> OnnxModel:
        from trtopt.graph.file import load_ir
        from trtopt.precision import precision as precision_of
        from trtopt.precision.passes.pairs import links
        from trtopt.precision.passes.smoothing import WAYS

        format = precision_of(precision).FORMAT
        path = folder / "equalized.onnx"
        if not links(load_ir(model.path)):
            return _equalized(model, {}, (), path, format)
        statistics = survey(run, model, dataset).channels

        # Evaluate every way that changes the network.
        error = output_error(run, model, dataset, precision)
        errors: dict[tuple[float, ...], float] = {}
        candidates: dict[tuple[float, ...], OnnxModel] = {}
        for exponents in WAYS:
            with scratch(run, "equalized.onnx") as trial_path:
                candidate = _equalized(model, statistics, exponents, trial_path, format)
                if candidate.notes:
                    candidates[exponents] = candidate
                    errors[exponents] = error(candidate, None)
        if not errors:
            equalized = _equalized(model, {}, (), path, format)
            adopt(run, equalized, dataset, function=model, values=model)
            return equalized

        plain = error(model, None)
        best = min(errors, key=errors.__getitem__)
        if not math.isfinite(plain) or not errors[best] < WORTH * plain:
            evaluated = math.isfinite(plain)
            why = "no significant gain in output SQNR" if evaluated else "the quantized network could not be evaluated"
            equalized = _not_equalized(model, path, why, format)
            adopt(run, equalized, dataset, function=model, values=model)
            return equalized
        equalized = _equalized(model, statistics, best, path, format)
        adopt(run, equalized, dataset, function=model, values=candidates[best])
        gain = f"+{decibels(plain, errors[best]):.1f} dB SQNR on {counted(subset_size(dataset), 'sample')}"
        return replace(equalized, notes=(*equalized.notes, gain))

    key = {"model": model.digest, "data": dataset.digest, "device": run.place, "worth": str(WORTH)}
    key |= {"for": precision, **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir")}
    return run.store.stage("equalize", key, OnnxModel, make, _equalized_line)


def _equalized(
    model: OnnxModel, statistics: Mapping[str, Channels], exponents: Sequence[float], path: Path, format: Format
) -> OnnxModel:
    """Write the equalized network to `path`, or a link to it if there are no exponents. A note says what changed."""
    from trtopt.graph.file import describe, link, load_ir
    from trtopt.graph.prepare import BETWEEN_STAGES, save
    from trtopt.precision.passes.equalize import equalize
    from trtopt.precision.passes.pairs import links

    if not exponents and link(model.path, path):
        return describe(path, ())
    graph = load_ir(model.path)
    absorbed, inserted = equalize(graph, links(graph) if exponents else [], statistics, exponents, format)
    save(graph, path, inline=BETWEEN_STAGES)
    count = len(absorbed) + len(inserted)
    if not count:
        return describe(path, ())
    note = f"{counted(count, 'activation')} equalized"
    if inserted:
        note += f", {len(inserted)} with an inserted Mul"
    return describe(path, (note,))


def _not_equalized(model: OnnxModel, path: Path, why: str, format: Format) -> OnnxModel:
    """Write the model to `path`, with a note that says why it was not equalized."""
    return replace(_equalized(model, {}, (), path, format), notes=(f"not equalized: {why}",))


def _equalized_line(equalized: OnnxModel) -> str:
    return "; ".join(equalized.notes) or "no channels to equalize"
