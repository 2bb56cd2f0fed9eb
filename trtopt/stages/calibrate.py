"""The stage `calibrate`: one scale per tensor, from samples.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.ranges import subset_size
from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.plan import BuildPlan
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.trial import output_error, rough, tapped
from trtopt.types import CalibrationTable, OnnxModel


def calibrate(
    run: Run, model: OnnxModel, dataset: Dataset, method: str, precision: str, plan: BuildPlan | None = None
) -> CalibrationTable:
    """Return a table with one scale per tensor (`calibration.json`; for INT8 also TensorRT's `calibration.cache`).

    With `auto`, each method's network is evaluated in the requested precision, with bias correction for the weights and
    with FP32 as the fallback precision. Flags do not change this, because scales do not depend on them. `precision` is
    what the network will be quantized to. `native` runs TensorRT's own calibrator with the options of `plan`.
    """

    def make(folder: Path) -> CalibrationTable:
        from trtopt.calibrate import AUTO, NATIVE, auto, method_names, noisiest, table
        from trtopt.data.overlap import fingerprinted
        from trtopt.precision import precision as precision_of

        format = precision_of(precision).FORMAT
        fingerprints: dict[int, str] = {}
        # TF32 is off for entropy only: its divergence is flat around the minimum, so small errors move its choice.
        tf32 = method not in ("entropy", AUTO)
        histograms = _histograms(run, model, fingerprinted(dataset, fingerprints), CudaOptions(tf32=tf32))
        names = method_names() if method == AUTO else ["minmax" if method == NATIVE else method]
        tables = {
            name: table.make_table(name, histograms, model=model, dataset=dataset, format=format) for name in names
        }
        if method == AUTO:
            error = output_error(run, model, dataset, precision)
            request = rough(run, model, dataset, precision, tables[auto.FALLBACK])
            chosen = auto.choose(tables, lambda table: error(model, replace(request, table=table)))
        elif method == NATIVE:
            chosen = _native(run, tables["minmax"], model, dataset, plan or BuildPlan())
        else:
            chosen = tables[method]
        chosen = replace(chosen, precision=precision, fingerprints=tuple(sorted(set(fingerprints.values()))))
        table.write_json(chosen, folder / "calibration.json", histograms, format)
        if precision == table.CACHED:
            table.write_cache(chosen, folder / "calibration.cache")
        noisiest.write(noisiest.noisiest(chosen, histograms, format), folder)
        return chosen

    key = {"model": model.digest, "data": dataset.digest, "method": method, "device": run.place}
    if method == "native":
        key["native"] = encode(plan)
    key |= {"for": precision, **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "numba")}
    tried_on = subset_size(dataset)
    return run.store.stage("calibrate", key, CalibrationTable, make, lambda table: _calibrated_line(table, tried_on))


def _native(run: Run, known: CalibrationTable, model: OnnxModel, dataset: Dataset, plan: BuildPlan) -> CalibrationTable:
    """Return the table with the scales that TensorRT's own calibrator chooses; those that it lacks stay as they are."""
    from trtopt.calibrate import NATIVE
    from trtopt.calibrate.table import read_table
    from trtopt.engine.trt import apart
    from trtopt.engine.trt.locate import find

    trt = find(plan.tensorrt)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as name:
        samples, cache = Path(name) / "samples.npz", Path(name) / "native.cache"
        feeds = (dataset.load(index) for index in range(len(dataset)))
        shapes = {input: array.shape for input, array in dataset.load(0).items()}
        same = [feed for feed in feeds if {input: array.shape for input, array in feed.items()} == shapes]
        arrays = {f"{i} {input}": array for i, feed in enumerate(same) for input, array in feed.items()}
        np.savez(samples, **arrays)  # type: ignore[arg-type]
        request = apart.Native(tensorrt=trt.name, model=model.path.resolve(), samples=samples, plan=plan, out=cache)
        apart.native(trt, request, run.emit)
        own = read_table(cache).scales
    chosen = {tensor: own[tensor] for tensor in known.scales if own.get(tensor, 0.0) > 0}
    left = len(known.scales) - len(chosen)
    run.note(f"{len(chosen)} scales are those of {trt.title}'s own calibrator" + (f", {left} absmax" if left else ""))
    return replace(known, method=NATIVE, samples=len(same), scales={**known.scales, **chosen})


def _histograms(run: Run, model: OnnxModel, dataset: Dataset, cuda: CudaOptions) -> dict[str, Histogram]:
    """Return histograms of the tensors to quantize. The session and its memory are released on return."""
    from trtopt.calibrate.observe import callers
    from trtopt.calibrate.source import observe_where_it_runs
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.graph.file import load_ir
    from trtopt.precision.passes.placement import place

    tensors = place(load_ir(model.path)).tensors()
    with tapped(run, model, tensors) as path:
        runner = open_runner(path, device=run.device, cuda=cuda, callers=callers())
        if runner.place.kind == "cuda":
            run.note(f"calibrated in {runner.where}")
        return observe_where_it_runs(runner, tensors, dataset, stage="calibrate", emit=run.emit)


def _calibrated_line(table: CalibrationTable, tried_on: int) -> str:
    """Return the summary line, with the output SQNR of each candidate method, best first, and its number of samples."""
    line = f"{len(table.scales)} scales from {table.samples} samples by {table.method}"
    if not table.tried:
        return line
    best_first = sorted(table.tried.items(), key=lambda item: -item[1])
    candidates = ", ".join(f"{name} {decibels:.1f} dB" for name, decibels in best_first)
    return f"{line} (output SQNR on {tried_on} samples: {candidates})"
