"""The stages that run samples through the FP32 model: equalize, calibrate, observe.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trtopt.calibrate.auto import TINY
from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.ranges import SAMPLES, Channels, Seen
from trtopt.config import DataPlan
from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.errors import TrtoptError
from trtopt.events import Warned
from trtopt.precision import Request
from trtopt.stages.context import Context, Target, versions
from trtopt.stages.trial import output_error, rough, scratch, tapped
from trtopt.store import file_digest
from trtopt.types import CalibrationTable, Observation, OnnxModel

WORTH = 0.9
"""Equalization is kept only if the error at the outputs falls to this share or less. A smaller gain is within the
variation between samples."""

_CORRECTED = {"weights": "weights", "weights and inputs": "weights and activations"}
"""Values of `Observation.correction` as the summary line names them."""


def open_data(plan: DataPlan, model: OnnxModel) -> Dataset:
    """Open the samples of a plan for the inputs of a model."""
    from trtopt.data import Labelling, load_recipe, open_dataset, read_classes

    recipe = load_recipe(plan.recipe) if plan.recipe else None
    labelling = Labelling(classes=read_classes(plan.classes) if plan.classes else None, file=plan.labels)
    return open_dataset(plan.source, model.inputs, recipe=recipe, labelling=labelling, skip_bad=plan.skip_bad)


def sizes(plans: Iterable[DataPlan | None], model: OnnxModel) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that the samples have for each input, to suggest a `--shape`.

    Samples that cannot be read are left out: the error is reported when they are needed.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for plan in plans:
        # A source with a colon is a function: its code does not run only for a suggestion.
        if plan is None or ":" in plan.source:
            continue
        try:
            dataset = open_data(replace(plan, skip_bad=False), model)
        except TrtoptError:
            continue
        for i, spec in enumerate(model.inputs):
            shapes.setdefault(spec.name, []).extend(of_sample[i] for of_sample in dataset.shapes)
    return shapes


def equalize(context: Context, model: OnnxModel, dataset: Dataset, precision: str) -> OnnxModel:
    """Return the model with the ranges of its channels equalized (`equalized.onnx`); it computes the same function.

    Several ways to equalize are evaluated on a few samples, and the network without equalization as well. The one with
    the smallest error at the network's outputs is used, because a smaller error in each layer does not guarantee a
    smaller error at the outputs. `precision` is what the network will be quantized to.
    """

    def make(folder: Path) -> OnnxModel:
        from trtopt.calibrate.ranges import channels
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import load_ir
        from trtopt.precision.divisors import WAYS
        from trtopt.precision.equalize import links

        path = folder / "equalized.onnx"
        axes = {link.name: link.axis for link in links(load_ir(model.path))}
        if not axes:
            return _equalized(model, {}, (), path)
        with tapped(context, model, list(axes)) as tapped_path:
            statistics = channels(open_runner(tapped_path, device=context.device).run, dataset, axes)

        # Evaluate every way that changes the network.
        error = output_error(context, model, dataset, precision)
        errors: dict[tuple[float, ...], float] = {}
        for exponents in WAYS:
            with scratch(context, "equalized.onnx") as trial_path:
                candidate = _equalized(model, statistics, exponents, trial_path)
                if candidate.notes:
                    errors[exponents] = error(candidate, None)
        if not errors:
            return _equalized(model, {}, (), path)

        plain = error(model, None)
        best = min(errors, key=errors.__getitem__)
        if not math.isfinite(plain):
            return _not_equalized(model, path, "the quantized network could not be evaluated")
        if not errors[best] < WORTH * plain:
            return _not_equalized(model, path, "no significant gain in output SQNR")
        equalized = _equalized(model, statistics, best, path)
        gain = f"+{_decibels(plain, errors[best]):.1f} dB SQNR on {min(SAMPLES, len(dataset))} samples"
        return replace(equalized, notes=(*equalized.notes, gain))

    key = {"model": model.digest, "data": dataset.digest, "device": context.device, "worth": str(WORTH)}
    key |= {"for": precision, **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir")}
    return context.store.stage("equalize", key, OnnxModel, make, _equalized_line)


def _equalized(
    model: OnnxModel, statistics: Mapping[str, Channels], exponents: Sequence[float], path: Path
) -> OnnxModel:
    """Write the equalized network to `path`, or a copy if there are no exponents. A note says what was equalized."""
    from trtopt.export.onnx import describe, load_ir
    from trtopt.export.prepare import BETWEEN_STAGES, save
    from trtopt.precision.equalize import equalize, links

    graph = load_ir(model.path)
    absorbed, inserted = equalize(graph, links(graph) if exponents else [], statistics, exponents)
    save(graph, path, inline=BETWEEN_STAGES)
    count = len(absorbed) + len(inserted)
    if not count:
        return describe(path, ())
    note = f"{count} activation{'s' * (count != 1)} equalized"
    if inserted:
        note += f", {len(inserted)} with an inserted Mul"
    return describe(path, (note,))


def _not_equalized(model: OnnxModel, path: Path, why: str) -> OnnxModel:
    """Write a copy of the model to `path`, with a note that says why it was not equalized."""
    return replace(_equalized(model, {}, (), path), notes=(f"not equalized: {why}",))


def _equalized_line(equalized: OnnxModel) -> str:
    return "; ".join(equalized.notes) or "no channels to equalize"


def _decibels(before: float, after: float) -> float:
    """Return by how many dB the SQNR rises when the relative error falls from `before` to `after`."""
    return 10 * math.log10(max(before, TINY) / max(after, TINY))


def calibrate(context: Context, model: OnnxModel, dataset: Dataset, method: str, precision: str) -> CalibrationTable:
    """Return a table with one scale per tensor (`calibration.json`; for INT8 also TensorRT's `calibration.cache`).

    With `auto`, each method's network is evaluated in the requested precision, with bias correction for the weights and
    with FP32 as the fallback precision. Flags do not change this, because scales do not depend on them. `precision` is
    what the network will be quantized to.
    """

    def make(folder: Path) -> CalibrationTable:
        from trtopt.calibrate import AUTO, auto, methods, noisiest, table
        from trtopt.data.overlap import fingerprinted

        fingerprints: dict[int, str] = {}
        # TF32 is off for entropy only: its divergence is flat around the minimum, so small errors move its choice.
        tf32 = method not in ("entropy", AUTO)
        histograms = _histograms(context, model, fingerprinted(dataset, fingerprints), CudaOptions(tf32=tf32))
        names = methods() if method == AUTO else [method]
        tables = {name: table.make_table(name, histograms, model=model, dataset=dataset) for name in names}
        if method == AUTO:
            error = output_error(context, model, dataset, precision)
            request = rough(context, model, dataset, tables[auto.FALLBACK])
            chosen = auto.choose(tables, lambda table: error(model, replace(request, table=table)))
        else:
            chosen = tables[method]
        chosen = replace(chosen, precision=precision, fingerprints=tuple(sorted(set(fingerprints.values()))))
        table.write_json(chosen, folder / "calibration.json", histograms)
        if precision == table.CACHED:
            table.write_cache(chosen, folder / "calibration.cache")
        noisiest.write(noisiest.noisiest(chosen, histograms), folder)
        return chosen

    key = {"model": model.digest, "data": dataset.digest, "method": method, "device": context.device}
    key |= {"for": precision, **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "numba")}
    return context.store.stage("calibrate", key, CalibrationTable, make, _calibrated_line)


def _histograms(context: Context, model: OnnxModel, dataset: Dataset, cuda: CudaOptions) -> dict[str, Histogram]:
    """Return histograms of the tensors to quantize. The session and its memory are released on return."""
    from trtopt.calibrate.observe import callers
    from trtopt.engine.observing import observe_where_it_runs
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.export.onnx import load_ir
    from trtopt.precision.placement import place

    tensors = place(load_ir(model.path)).tensors()
    with tapped(context, model, tensors) as path:
        runner = open_runner(path, device=context.device, cuda=cuda, callers=callers())
        if runner.place.kind == "cuda":
            context.emit(Warned(f"calibrated in {runner.where}"))
        return observe_where_it_runs(runner, tensors, dataset, stage="calibrate", emit=context.emit)


def _calibrated_line(table: CalibrationTable) -> str:
    """Return the summary line, with the output SQNR of each candidate method, best first."""
    line = f"{len(table.scales)} scales from {table.samples} samples by {table.method}"
    if not table.tried:
        return line
    best_first = sorted(table.tried.items(), key=lambda item: -item[1])
    candidates = ", ".join(f"{name} {decibels:.1f} dB" for name, decibels in best_first)
    return f"{line} (output SQNR on {min(SAMPLES, table.samples)} samples: {candidates})"


def observe(
    context: Context, model: OnnxModel, dataset: Dataset, target: Target, table: CalibrationTable | None
) -> Observation:
    """Return the absmax of all tensors over a few samples, and the means for bias correction (`observed.npz`).

    With a table and bias correction, the corrections are evaluated on the samples, and the best one is chosen. A
    precision without scales has no table.
    """
    corrects = table is not None and target.bias_correction

    def make(folder: Path) -> Observation:
        from trtopt.calibrate.ranges import look
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import load_ir
        from trtopt.precision.eight_bits import rounding_errors
        from trtopt.precision.graph import float_nodes, is_float
        from trtopt.precision.placement import channel_axes
        from trtopt.precision.qdq import FORMATS

        graph = load_ir(model.path)
        nodes = list(float_nodes(graph.graph))
        tensors = [value.name or "" for node in nodes for value in node.outputs if is_float(value)]
        request = Request(rest=target.rest, table=table)
        roundings = rounding_errors(graph, request, FORMATS[target.precision]) if corrects else {}
        with tapped(context, model, tensors) as tapped_path:
            run = open_runner(tapped_path, device=context.device).run
            seen = look(run, dataset, channel_axes(nodes), roundings, stage="observe", emit=context.emit)
        path = folder / "observed.npz"
        _write_means(seen, path)
        correction, gain = "", 0.0
        if corrects:
            request = replace(request, ranges=seen.ranges, sizes=seen.sizes)
            error = output_error(context, model, dataset, target.precision)
            correction, gain = _best_correction(error, model, request, seen)
        return Observation(
            ranges=seen.ranges,
            sizes=seen.sizes,
            samples=seen.samples,
            means=path,
            digest=file_digest(path),
            correction=correction,
            gain=gain,
        )

    key = {
        "model": model.digest,
        "data": dataset.digest,
        "device": context.device,
        "target": asdict(target),
        "table": dict(sorted(table.scales.items())) if table else None,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir"),
    }
    return context.store.stage("observe", key, Observation, make, lambda seen: _observed_line(seen, corrects=corrects))


def _write_means(seen: Seen, path: Path) -> None:
    """Write the means and mean rounding errors per channel to an .npz file.

    Its keys are indices into the array `names`, because tensor names may not be valid names inside an archive.
    """
    import numpy as np

    arrays: dict[str, Any] = {"names": np.array(list(seen.means), dtype=np.str_)}
    for i, (name, mean) in enumerate(seen.means.items()):
        arrays[str(i)] = mean
        if name in seen.errors:
            arrays[f"{i} rounding"] = seen.errors[name]
    np.savez(path, allow_pickle=False, **arrays)


def _best_correction(
    error: Callable[[OnnxModel, Request | None], float], model: OnnxModel, request: Request, seen: Seen
) -> tuple[str, float]:
    """Return the best value of `Observation.correction`, empty for none, and its gain in output SQNR in dB."""
    candidates = {
        "": request,
        "weights": replace(request, means=seen.means),
        "weights and inputs": replace(request, means=seen.means, errors=seen.errors),
    }
    errors = {name: error(model, candidate) for name, candidate in candidates.items()}
    if not math.isfinite(errors[""]):
        return "", 0.0  # without a reference a gain cannot be measured
    best = min(errors, key=errors.__getitem__)
    return best, _decibels(errors[""], errors[best])


def _observed_line(observation: Observation, *, corrects: bool) -> str:
    """Return the summary line, with the bias correction if one was evaluated."""
    line = f"absmax of {len(observation.ranges)} tensors over {observation.samples} samples"
    if observation.correction:
        corrected = _CORRECTED[observation.correction]
        return f"{line}; bias correction for {corrected}: +{observation.gain:.1f} dB SQNR"
    return f"{line}; no bias correction: no gain in output SQNR" if corrects else line
