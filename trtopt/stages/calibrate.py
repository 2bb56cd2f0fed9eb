"""The stage `calibrate`: one scale per tensor, from samples.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.ranges import subset_size
from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.trial import output_error, rough, tapped
from trtopt.types import CalibrationTable, Keep, Only, OnnxModel


def calibrate(
    run: Run, model: OnnxModel, dataset: Dataset, method: str, precision: str, only: Only | None = None
) -> CalibrationTable:
    """Return a table with one scale per tensor (`calibration.json`; for INT8 also TensorRT's `calibration.cache`).

    With `auto`, each method's network is evaluated in the requested precision, with bias correction for the weights and
    with FP32 as the fallback precision. `precision` is what the network will be quantized to. Of the flags, `only`
    alone changes this: there are scales for what its nodes read, and a trial quantizes these nodes.
    """

    def make(folder: Path) -> CalibrationTable:
        from trtopt.calibrate import AUTO, auto, method_names, noisiest, table
        from trtopt.data.overlap import fingerprinted
        from trtopt.graph.file import load_ir
        from trtopt.precision import precision as precision_of
        from trtopt.precision.passes.wanted import resolve

        keep = resolve(load_ir(model.path), (), only)
        format = precision_of(precision).FORMAT
        fingerprints: dict[int, str] = {}
        # TF32 is off for entropy only: its divergence is flat around the minimum, so small errors move its choice.
        tf32 = method not in ("entropy", AUTO)
        histograms = _histograms(run, model, fingerprinted(dataset, fingerprints), keep, CudaOptions(tf32=tf32))
        names = method_names() if method == AUTO else [method]
        tables = {
            name: table.make_table(name, histograms, model=model, dataset=dataset, format=format) for name in names
        }
        if method == AUTO:
            error = output_error(run, model, dataset, precision)
            request = replace(rough(run, model, dataset, precision, tables[auto.FALLBACK]), keep=keep)
            chosen = auto.choose(tables, lambda table: error(model, replace(request, table=table)))
        else:
            chosen = tables[method]
        chosen = replace(chosen, precision=precision, fingerprints=tuple(sorted(set(fingerprints.values()))))
        table.write_json(chosen, folder / "calibration.json", histograms, format)
        if precision == table.CACHED:
            table.write_cache(chosen, folder / "calibration.cache")
        noisiest.write(noisiest.noisiest(chosen, histograms, format), folder)
        return chosen

    key: dict[str, Any] = {"model": model.digest, "data": dataset.digest, "method": method, "device": run.place}
    key |= {"for": precision, **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "numba")}
    if only is not None:
        key["only"] = asdict(only)
    tried_on = subset_size(dataset)
    return run.store.stage("calibrate", key, CalibrationTable, make, lambda table: _calibrated_line(table, tried_on))


def _histograms(
    run: Run, model: OnnxModel, dataset: Dataset, keep: Mapping[str, Keep], cuda: CudaOptions
) -> dict[str, Histogram]:
    """Return histograms of the tensors to quantize. The session and its memory are released on return."""
    from trtopt.calibrate.observe import callers
    from trtopt.calibrate.source import observe_where_it_runs
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.graph.file import load_ir
    from trtopt.precision.passes.placement import place

    tensors = place(load_ir(model.path), keep).tensors()
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
