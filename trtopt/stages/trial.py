"""Try a quantized network on a few calibration samples: what equalization, biases and `--method auto` choose by.

Touches: temporary files in the run directory; reads the samples.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import TrtoptError
from trtopt.events import Warned
from trtopt.precision import Request
from trtopt.stages.context import Context
from trtopt.types import OnnxModel

SAMPLES = 16
"""Samples that each candidate's network runs on: enough to tell them apart by decibels, cheap beside calibration."""
TINY = 1e-30
METHOD = "mse"
"""Of the scales that networks are compared by before a method is chosen, whatever was asked for."""


@contextlib.contextmanager
def scratch(context: Context, name: str) -> Iterator[Path]:
    """A file in the run directory that goes, with its external data, when the block is left."""
    path = context.store.root / f".tmp-{name}"
    try:
        yield path
    finally:
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def tapped(context: Context, model: OnnxModel, tensors: Sequence[str]) -> Iterator[Path]:
    """A copy of the model, beside it so that external data is found, that gives these tensors as its outputs."""
    from trtopt.calibrate.observe import tap

    with scratch(context, "tapped.onnx") as path:
        tap(model, tensors, path)
        yield path


def output_error(
    context: Context, model: OnnxModel, dataset: Dataset, kind: str
) -> Callable[[OnnxModel, Request], float]:
    """A function that quantizes a network equal to `model`, and returns noise over signal energy, summed over outputs.

    It is infinite if outputs have other shapes than in FP32, are NaN or infinite, or cannot be computed, which is
    warned of: a trial ends nothing. `kind` is the precision that the network is quantized to.
    """
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import BETWEEN_STAGES, save
    from trtopt.precision import precision

    indices = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int))
    feeds = [dataset.load(int(index)) for index in indices]
    run = open_runner(model.path, device=context.device).run
    wanted = [run(feed) for feed in feeds]

    warned: set[str] = set()

    def outputs(candidate: OnnxModel, request: Request) -> list[Mapping[str, Array]]:
        graph = load_ir(candidate.path)
        precision(kind).apply(graph, request)
        with scratch(context, "trial.onnx") as path:
            save(graph, path, inline=BETWEEN_STAGES)
            quantized = open_runner(path, device=context.device).run
            return [quantized(feed) for feed in feeds]

    def error(candidate: OnnxModel, request: Request) -> float:
        try:
            found = outputs(candidate, request)
        except TrtoptError as failure:
            if str(failure) not in warned:  # what ends one trial ends the next one, too
                warned.add(str(failure))
                context.emit(Warned(f"what suits this network could not be tried: {failure}"))
            return math.inf
        total = 0.0
        for name in wanted[0]:
            pairs = [(np.float64(w[name]), np.float64(f[name])) for w, f in zip(wanted, found, strict=True)]
            if any(w.shape != f.shape for w, f in pairs):
                return math.inf  # how many results there are depends on the values: boxes, say
            signal = sum(float((w * w).sum()) for w, _ in pairs)
            total += sum(float(((w - f) ** 2).sum()) for w, f in pairs) / max(signal, TINY)
        return total if math.isfinite(total) else math.inf

    return error


def rough(context: Context, model: OnnxModel, dataset: Dataset) -> Request:
    """A request with scales and channel means from a few samples: enough to compare networks by, not to convert with.

    Raises:
        CalibrationError: a tensor to quantize is NaN or infinite; the tensor and the sample are named.
    """
    from trtopt.calibrate.observe import observe
    from trtopt.calibrate.ranges import channel_means, few
    from trtopt.calibrate.table import make_table
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.events import silent
    from trtopt.export.onnx import load_ir
    from trtopt.precision.graph import float_nodes
    from trtopt.precision.placement import channel_axes, place

    graph, samples = load_ir(model.path), few(dataset)
    axes = channel_axes(list(float_nodes(graph.graph)))
    tensors = place(graph).tensors()
    means: dict[str, npt.NDArray[np.float64]] = {}
    with tapped(context, model, [*tensors, *axes]) as path:
        run = open_runner(path, device=context.device).run

        def averaged(feed: Feed) -> Mapping[str, Array]:
            outputs = run(feed)
            for name, axis in axes.items():
                array = outputs[name] if name in outputs else feed[name]
                if array.dtype == np.float32 and array.size:
                    means[name] = means.get(name, 0.0) + channel_means(array, axis) / len(samples)
            return outputs

        histograms = observe(averaged, tensors, samples, stage="equalize", emit=silent)
    table = make_table(METHOD, histograms, model=model, dataset=samples)
    return Request(rest="fp32", table=table, means=means)
