"""The stages that run samples through the FP32 model: equalize, calibrate, observe.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trtopt.config import DataPlan
from trtopt.data.dataset import Dataset
from trtopt.events import Warned
from trtopt.stages.context import Context, versions
from trtopt.store import file_digest
from trtopt.types import CalibrationTable, Observation, OnnxModel


def open_data(plan: DataPlan, model: OnnxModel) -> Dataset:
    """Open the samples of a plan for a model."""
    from trtopt.data import load_recipe, open_dataset

    recipe = load_recipe(plan.recipe) if plan.recipe else None
    return open_dataset(plan.source, model.inputs, recipe=recipe, skip_bad=plan.skip_bad)


def equalize(context: Context, model: OnnxModel, dataset: Dataset) -> OnnxModel:
    """FP32 ONNX + a few samples -> the same function with channels of similar range (`equalized.onnx`)."""

    def make(folder: Path) -> OnnxModel:
        from trtopt.calibrate.ranges import channel_peaks
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import describe, load_ir
        from trtopt.export.prepare import save
        from trtopt.precision.equalize import equalize, links

        graph = load_ir(model.path)
        chosen = links(graph.graph)
        axes = {link.tensor: link.axis for link in chosen}
        with _tapped(context, model, list(axes)) as path:
            peaks = channel_peaks(open_runner(path, device=context.device).run, dataset, axes) if axes else {}
        done = equalize(graph, chosen, peaks)
        save(graph, folder / "equalized.onnx")
        return describe(folder / "equalized.onnx", (f"channels of {len(done)} activations brought to similar ranges",))

    key = {"model": model.digest, "data": dataset.digest, "device": context.device}
    key |= versions("onnxruntime", "onnxruntime-gpu", "onnx-ir")
    return context.store.stage("equalize", key, OnnxModel, make, lambda made: "; ".join(made.notes))


def calibrate(context: Context, model: OnnxModel, dataset: Dataset, method: str) -> CalibrationTable:
    """FP32 ONNX + samples -> one scale a tensor (`calibration.json`, and `calibration.cache` as TensorRT writes it)."""

    def make(folder: Path) -> CalibrationTable:
        from trtopt.calibrate import AUTO, auto, methods, observe, table
        from trtopt.data.overlap import fingerprinted
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import load_ir
        from trtopt.precision.placement import place

        tensors = place(load_ir(model.path)).tensors()
        seen: set[str] = set()
        with _tapped(context, model, tensors) as path:
            run = open_runner(path, device=context.device).run
            watched = fingerprinted(dataset, seen)
            histograms = observe.observe(run, tensors, watched, stage="calibrate", emit=context.emit)
        if method == AUTO:
            candidates = {n: table.make_table(n, histograms, model=model, dataset=dataset) for n in methods()}
            made, line = auto.choose(candidates, _output_error(context, model, dataset))
            context.emit(Warned(f"--method auto chose {line}"))
        else:
            made = table.make_table(method, histograms, model=model, dataset=dataset)
        table.write_json(made, folder / "calibration.json", histograms)
        table.write_cache(made, folder / "calibration.cache")
        return replace(made, fingerprints=tuple(sorted(seen)))

    key = {"model": model.digest, "data": dataset.digest, "method": method, "device": context.device}
    return context.store.stage(
        "calibrate",
        key | versions("onnxruntime", "onnxruntime-gpu", "numba"),
        CalibrationTable,
        make,
        lambda made: f"{made.method} over {made.samples} samples: {len(made.scales)} scales",
    )


def _output_error(context: Context, model: OnnxModel, dataset: Dataset) -> Callable[[CalibrationTable], float]:
    """A function that quantizes the network with a table, and returns noise over signal energy, summed over outputs."""
    import numpy as np

    from trtopt.calibrate.auto import SAMPLES
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import save
    from trtopt.precision import Request, precision

    indices = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int))
    feeds = [dataset.load(int(index)) for index in indices]
    run = open_runner(model.path, device=context.device).run
    wanted = [run(feed) for feed in feeds]

    def error(table: CalibrationTable) -> float:
        graph = load_ir(model.path)
        precision("int8").apply(graph, Request(rest="fp32", table=table))
        path = context.store.root / ".tmp-candidate.onnx"
        save(graph, path)
        quantized = open_runner(path, device=context.device).run
        found = [quantized(feed) for feed in feeds]
        total = 0.0
        for name in wanted[0]:
            pairs = [(np.float64(w[name]), np.float64(f[name])) for w, f in zip(wanted, found, strict=True)]
            signal = sum(float((w * w).sum()) for w, _ in pairs)
            total += sum(float(((w - f) ** 2).sum()) for w, f in pairs) / max(signal, 1e-30)
        return total

    return error


def observe(context: Context, model: OnnxModel, dataset: Dataset) -> Observation:
    """FP32 ONNX + a few samples -> magnitudes of all tensors, and the means that correct biases (`observed.npz`)."""

    def make(folder: Path) -> Observation:
        import numpy as np

        from trtopt.calibrate.ranges import look
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import load_ir
        from trtopt.precision.graph import float_nodes, is_float
        from trtopt.precision.placement import channel_axes

        nodes = list(float_nodes(load_ir(model.path).graph))
        tensors = [value.name or "" for node in nodes for value in node.outputs if is_float(value)]
        with _tapped(context, model, tensors) as path:
            run = open_runner(path, device=context.device).run
            seen = look(run, dataset, channel_axes(nodes), stage="observe", emit=context.emit)
        path = folder / "observed.npz"
        # Under numbers, beside their names: a tensor's name may hold what a file's name may not.
        names = np.array(list(seen.means), dtype=np.str_)
        np.savez(path, allow_pickle=False, names=names, **{str(i): mean for i, mean in enumerate(seen.means.values())})
        return Observation(
            ranges=seen.ranges, sizes=seen.sizes, samples=seen.samples, means=path, digest=file_digest(path)
        )

    key = {"model": model.digest, "data": dataset.digest, "device": context.device}
    return context.store.stage(
        "observe",
        key | versions("onnxruntime", "onnxruntime-gpu"),
        Observation,
        make,
        lambda made: f"magnitudes of {len(made.ranges)} tensors over {made.samples} samples",
    )


@contextlib.contextmanager
def _tapped(context: Context, model: OnnxModel, tensors: Sequence[str]) -> Iterator[Path]:
    """A copy of the model, beside it so that external data is found, that gives these tensors as its outputs."""
    from trtopt.calibrate.observe import tap

    path = context.store.root / ".tmp-tapped.onnx"
    try:
        tap(model, tensors, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
