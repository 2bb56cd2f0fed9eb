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
"""Equalized, a network must err by no more than this share of what it did: less is within what samples differ by."""


def open_data(plan: DataPlan, model: OnnxModel) -> Dataset:
    """Open the samples of a plan for a model."""
    from trtopt.data import load_recipe, open_dataset

    recipe = load_recipe(plan.recipe) if plan.recipe else None
    return open_dataset(plan.source, model.inputs, recipe=recipe, skip_bad=plan.skip_bad)


def sizes(plans: Iterable[DataPlan | None], model: OnnxModel) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that samples give each input, for a hint; nothing where they cannot be read: that is told later."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for plan in plans:
        if plan is None or ":" in plan.source:  # the code of a function is not run for a hint
            continue
        try:
            dataset = open_data(replace(plan, skip_bad=False), model)
        except TrtoptError:
            continue
        for i, spec in enumerate(model.inputs):
            found.setdefault(spec.name, []).extend(fed[i] for fed in dataset.shapes)
    return found


def equalize(context: Context, model: OnnxModel, dataset: Dataset, kind: str) -> OnnxModel:
    """FP32 ONNX + a few samples -> the same function with channels of similar range (`equalized.onnx`).

    Which way of equalizing suits a network, or none, is tried on the samples: less error in its layers need not be
    less at its outputs. `kind` is the precision that it will be quantized to.
    """

    def make(folder: Path) -> OnnxModel:
        from trtopt.calibrate.ranges import channels
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import load_ir
        from trtopt.precision.divisors import WAYS
        from trtopt.precision.equalize import links

        axes = {link.name: link.axis for link in links(load_ir(model.path))}
        if not axes:
            return _equalized(model, {}, (), folder / "equalized.onnx")
        with tapped(context, model, list(axes)) as path:
            seen = channels(open_runner(path, device=context.device).run, dataset, axes)
        error = output_error(context, model, dataset, kind)
        errors: dict[tuple[float, ...], float] = {}
        for exponents in WAYS:
            with scratch(context, "equalized.onnx") as path:
                candidate = _equalized(model, seen, exponents, path)
                if candidate.notes:
                    errors[exponents] = error(candidate, None)
        if not errors:
            return _equalized(model, {}, (), folder / "equalized.onnx")
        plain = error(model, None)
        best = min(errors, key=errors.__getitem__)
        if not (math.isfinite(plain) and errors[best] < WORTH * plain):
            made = _equalized(model, {}, (), folder / "equalized.onnx")
            why = (
                "equalized, the outputs are hardly nearer to FP32" if math.isfinite(plain) else "it could not be tried"
            )
            return replace(made, notes=(f"channels left as they are: {why}",))
        made = _equalized(model, seen, best, folder / "equalized.onnx")
        gain = 10 * math.log10(plain / max(errors[best], TINY))
        return replace(made, notes=(*made.notes, f"{gain:.1f} dB less error on {min(SAMPLES, len(dataset))} samples"))

    key = {"model": model.digest, "data": dataset.digest, "device": context.device, "worth": str(WORTH), "for": kind}
    key |= versions("onnxruntime", "onnxruntime-gpu", "onnx-ir")
    return context.store.stage(
        "equalize", key, OnnxModel, make, lambda made: "; ".join(made.notes) or "no channels to equalize"
    )


def _equalized(model: OnnxModel, seen: Mapping[str, Channels], exponents: Sequence[float], path: Path) -> OnnxModel:
    """Write the equalized network to `path`, as it is when there are no exponents; its note says what was changed."""
    from trtopt.export.onnx import describe, load_ir
    from trtopt.export.prepare import BETWEEN_STAGES, save
    from trtopt.precision.equalize import equalize, links

    graph = load_ir(model.path)
    absorbed, inserted = equalize(graph, links(graph) if exponents else [], seen, exponents)
    save(graph, path, inline=BETWEEN_STAGES)
    count = len(absorbed) + len(inserted)
    note = f"channels of {count} activation{'s' * (count != 1)} brought to similar ranges"
    note += f", {len(inserted)} by a multiplication more" if inserted else ""
    return describe(path, (note,) if count else ())


def calibrate(context: Context, model: OnnxModel, dataset: Dataset, method: str, kind: str) -> CalibrationTable:
    """FP32 ONNX + samples -> one scale a tensor (`calibration.json`; for INT8 also TensorRT's `calibration.cache`).

    `kind` is the precision that the network will be quantized to. `auto` tries the methods in it, with biases corrected
    by the weights and the rest in FP32, whatever the flags: scales do not depend on those.
    """

    def make(folder: Path) -> CalibrationTable:
        from trtopt.calibrate import AUTO, auto, methods, noisiest, table
        from trtopt.data.overlap import fingerprinted

        seen: dict[int, str] = {}
        # Of the methods only entropy moves with the arithmetic: its divergence is flat around the least.
        tf32 = method not in ("entropy", AUTO)
        histograms = _histograms(context, model, fingerprinted(dataset, seen), CudaOptions(tf32=tf32))
        names = methods() if method == AUTO else [method]
        tables = {name: table.make_table(name, histograms, model=model, dataset=dataset) for name in names}
        if method == AUTO:
            error = output_error(context, model, dataset, kind)
            request = rough(context, model, dataset, tables[auto.FALLBACK])
            made = auto.choose(tables, lambda table: error(model, replace(request, table=table)))
        else:
            made = tables[method]
        made = replace(made, precision=kind, fingerprints=tuple(sorted(set(seen.values()))))
        table.write_json(made, folder / "calibration.json", histograms)
        if kind == table.CACHED:
            table.write_cache(made, folder / "calibration.cache")
        noisiest.write(noisiest.noisiest(made, histograms), folder)
        return made

    key = {"model": model.digest, "data": dataset.digest, "method": method, "device": context.device, "for": kind}
    key |= versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "numba")
    return context.store.stage("calibrate", key, CalibrationTable, make, _calibrated_line)


def _histograms(context: Context, model: OnnxModel, dataset: Dataset, cuda: CudaOptions) -> dict[str, Histogram]:
    """Histograms of the tensors to quantize; the session that gave them, and its memory, are gone."""
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


def _calibrated_line(made: CalibrationTable) -> str:
    line = f"{made.method} over {made.samples} samples: {len(made.scales)} scales"
    best_first = sorted(made.tried.items(), key=lambda item: -item[1])
    tried = ", ".join(f"{name} {decibels:.1f} dB" for name, decibels in best_first)
    return f"{line}; on {min(SAMPLES, made.samples)} of them {tried}" if tried else line


def observe(
    context: Context, model: OnnxModel, dataset: Dataset, target: Target, table: CalibrationTable | None
) -> Observation:
    """FP32 ONNX + a few samples -> magnitudes of all tensors, and the means that correct biases (`observed.npz`).

    With a table it is tried on the samples whether correcting biases brings the outputs nearer to FP32.
    """

    def make(folder: Path) -> Observation:
        import numpy as np

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
        quantizes = table is not None and target.bias_correction
        roundings = rounding_errors(graph, request, FORMATS[target.precision]) if quantizes else {}
        with tapped(context, model, tensors) as path:
            run = open_runner(path, device=context.device).run
            seen = look(run, dataset, channel_axes(nodes), roundings, stage="observe", emit=context.emit)
        path = folder / "observed.npz"
        # Under numbers, beside their names: a tensor's name may hold what a file's name may not.
        arrays: dict[str, Any] = {"names": np.array(list(seen.means), dtype=np.str_)}
        for i, (name, mean) in enumerate(seen.means.items()):
            arrays[str(i)] = mean
            if name in seen.errors:
                arrays[f"{i} rounding"] = seen.errors[name]
        np.savez(path, allow_pickle=False, **arrays)
        correction, gain = "", 0.0
        if quantizes:
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
    tried = table is not None and target.bias_correction
    return context.store.stage("observe", key, Observation, make, lambda made: _observed_line(made, tried=tried))


def _best_correction(
    error: Callable[[OnnxModel, Request | None], float], model: OnnxModel, request: Request, seen: Seen
) -> tuple[str, float]:
    """Of whose errors biases are best corrected, and by how many dB the outputs are nearer to FP32 for it."""
    ways = {
        "": request,
        "weights": replace(request, means=seen.means),
        "weights and inputs": replace(request, means=seen.means, errors=seen.errors),
    }
    errors = {name: error(model, way) for name, way in ways.items()}
    if not math.isfinite(errors[""]):
        return "", 0.0  # nothing to be better than
    best = min(errors, key=errors.__getitem__)
    return best, 10 * math.log10(max(errors[""], TINY) / max(errors[best], TINY))


def _observed_line(made: Observation, *, tried: bool) -> str:
    line = f"magnitudes of {len(made.ranges)} tensors over {made.samples} samples"
    if made.correction:
        return f"{line}; biases correct the mean error of rounded {made.correction}: {made.gain:.1f} dB less error"
    return f"{line}; biases are not corrected: no gain was seen" if tried else line
