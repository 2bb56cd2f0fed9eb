"""The stage `observe`: absmax of all tensors, and means for bias correction, on a few samples.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trtopt.calibrate.ranges import Seen
from trtopt.data.dataset import Dataset
from trtopt.manifest import file_digest
from trtopt.precision import Request, formats
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.target import Target
from trtopt.stages.trial import decibels, output_error, tapped
from trtopt.types import CalibrationTable, Observation, OnnxModel
from trtopt.wording import counted

_CORRECTED = {"weights": "weights", "weights and inputs": "weights and activations"}
"""Values of `Observation.correction` as the summary line names them."""


def observe(
    run: Run, model: OnnxModel, dataset: Dataset, target: Target, table: CalibrationTable | None
) -> Observation:
    """Return the absmax of all tensors over a few samples, and the means for bias correction (`observed.npz`).

    With a table and bias correction, the corrections are evaluated on the samples, and the best one is chosen. A
    precision without scales has no table.
    """
    corrects = table is not None and target.bias_correction

    def make(folder: Path) -> Observation:
        from trtopt.calibrate.observe import callers
        from trtopt.calibrate.ranges import Wanted, look
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.graph.file import load_ir
        from trtopt.graph.query import float_nodes, is_float
        from trtopt.precision.passes.eight_bits import rounding_errors
        from trtopt.precision.passes.operands import channel_axes
        from trtopt.precision.passes.wanted import resolve
        from trtopt.stages import blocks

        graph = load_ir(model.path)
        nodes = list(float_nodes(graph.graph))
        tensors = [value.name or "" for node in nodes for value in node.outputs if is_float(value)]
        half = formats(16).get(target.rest if table else target.precision)
        spoiled = blocks.spoiled(run, model, dataset, half) if half else {}
        request = Request(rest=target.rest, table=table, keep=resolve(graph, target.keep, target.only), spoiled=spoiled)
        roundings = rounding_errors(graph, request, formats(8)[target.precision]) if corrects else {}
        with tapped(run, model, tensors) as tapped_path:
            runner = open_runner(tapped_path, device=run.device, callers=callers())
            outputs = [spec.name for spec in model.outputs]
            wanted = Wanted(outputs=outputs, channels=channel_axes(nodes), roundings=roundings)
            seen = look(runner.run, dataset, wanted, emit=run.emit, callers=runner.callers)
        path = folder / "observed.npz"
        _write_means(seen, path)
        correction, gain = "", 0.0
        if corrects:
            request = replace(request, ranges=seen.ranges, masks=seen.masks, sizes=seen.sizes)
            error = output_error(run, model, dataset, target.precision)
            correction, gain = _best_correction(error, model, request, seen)
        return Observation(
            ranges=seen.ranges,
            masks=seen.masks,
            sizes=seen.sizes,
            samples=seen.samples,
            means=path,
            digest=file_digest(path),
            correction=correction,
            gain=gain,
            spoiled=spoiled,
        )

    key = {
        "model": model.digest,
        "data": dataset.digest,
        "device": run.place,
        "target": asdict(target),
        "table": dict(sorted(table.scales.items())) if table else None,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir"),
    }
    return run.store.stage("observe", key, Observation, make, lambda seen: _observed_line(seen, corrects=corrects))


def _write_means(seen: Seen, path: Path) -> None:
    """Write the means and mean rounding errors per channel to an .npz file.

    Its keys are indices into the arrays `names` and `axes`, because tensor names may not be valid names in an archive.
    """
    import numpy as np

    arrays: dict[str, Any] = {
        "names": np.array([name for name, _ in seen.means], dtype=np.str_),
        "axes": np.array([axis for _, axis in seen.means], dtype=np.int64),
    }
    for i, (key, mean) in enumerate(seen.means.items()):
        arrays[str(i)] = mean
        if key in seen.errors:
            arrays[f"{i} rounding"] = seen.errors[key]
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
    return best, decibels(errors[""], errors[best])


def _observed_line(observation: Observation, *, corrects: bool) -> str:
    """Return the summary line, with the bias correction if one was evaluated."""
    line = f"absmax of {counted(len(observation.ranges), 'tensor')} over {counted(observation.samples, 'sample')}"
    if observation.correction:
        corrected = _CORRECTED[observation.correction]
        return f"{line}; bias correction for {corrected}: +{observation.gain:.1f} dB SQNR"
    return f"{line}; no bias correction: no gain in output SQNR" if corrects else line
