"""Try a quantized network on a few calibration samples: what equalization, biases and `--method auto` choose by.

Touches: temporary files in the run directory; reads the samples.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from trtopt.calibrate.auto import FALLBACK
from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import CalibrationError, EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.events import Warned
from trtopt.precision import Request
from trtopt.stages.context import Context
from trtopt.types import CalibrationTable, OnnxModel


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
) -> Callable[[OnnxModel, Request | None], float]:
    """A function that quantizes a network equal to `model`, and returns how far its outputs are from those in FP32.

    That is noise energy over signal energy, and of an output that is not of floating-point type, indices say, the share
    of values that differ; the mean over outputs. Without a request it takes a `rough` one. `kind` is the precision that
    the network is quantized to. What is infinite in FP32 does not count. A trial ends nothing: where outputs have other
    shapes than in FP32, are NaN or infinite, or cannot be computed, this is warned of, and the error is infinite.

    Raises:
        EnvironmentUnableError: of FP32 or of a trial: memory is exhausted, say, which another time it is not.
    """
    from trtopt.calibrate.ranges import few
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import BETWEEN_STAGES, save
    from trtopt.precision import precision

    samples = few(dataset)
    feeds = [samples.load(i) for i in range(len(samples))]
    run = open_runner(model.path, device=context.device).run
    wanted = [run(feed) for feed in feeds]
    original = load_ir(model.path)  # once: it is what most trials begin with
    warned: set[str] = set()

    def measured(candidate: OnnxModel, request: Request) -> float:
        graph = original.clone() if candidate == model else load_ir(candidate.path)
        precision(kind).apply(graph, request)
        energies = {name: np.zeros(2) for name in wanted[0]}
        with scratch(context, "trial.onnx") as path:
            save(graph, path, inline=BETWEEN_STAGES)
            quantized = open_runner(path, device=context.device).run
            for feed, outputs in zip(feeds, wanted, strict=True):
                found = quantized(feed)
                for name, energy in energies.items():
                    energy += _energies(name, outputs[name], found[name])
        return float(np.mean([noise / signal if signal else float(noise > 0) for noise, signal in energies.values()]))

    def error(candidate: OnnxModel, request: Request | None = None) -> float:
        try:
            return measured(candidate, request or rough(context, candidate, dataset))
        except (EnvironmentUnableError, MissingDependencyError):
            raise
        except TrtoptError as failure:
            if str(failure) not in warned:  # what ends one trial ends the next one, too
                warned.add(str(failure))
                context.emit(Warned(f"what is nearest to FP32 could not be tried: {failure}"))
            return math.inf

    return error


def _energies(name: str, wanted: Array, found: Array) -> tuple[float, float]:
    """Noise and signal of a sample's output; where it is not of floating-point type, how many values differ, of all."""
    if wanted.shape != found.shape:
        # How many results there are depends on the values: boxes, say.
        raise CalibrationError(f"output {name!r} has another shape than in FP32")
    if wanted.dtype.kind != "f":
        return float((wanted != found).sum()), wanted.size
    counts = ~np.isinf(wanted)  # a score of minus infinity says that a class is out of the question
    right, wrong = np.float64(wanted[counts]), np.float64(found[counts])
    noise = float(np.square(right - wrong).sum())
    if not math.isfinite(noise):
        raise CalibrationError(f"output {name!r} is NaN, or infinite where FP32 is not")
    return noise, float(np.square(right).sum())


def rough(context: Context, model: OnnxModel, dataset: Dataset, table: CalibrationTable | None = None) -> Request:
    """A request with channel means from a few samples, and scales, too, unless there is a table: enough to compare
    networks by, not to convert with.

    Raises:
        CalibrationError: a tensor to quantize is NaN or infinite; the tensor and the sample are named.
    """
    from trtopt.calibrate.observe import observe
    from trtopt.calibrate.ranges import Averages, channel_means, few
    from trtopt.calibrate.table import make_table
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.events import silent
    from trtopt.export.onnx import load_ir
    from trtopt.precision.graph import float_nodes
    from trtopt.precision.placement import channel_axes, place

    graph, samples = load_ir(model.path), few(dataset)
    axes = channel_axes(list(float_nodes(graph.graph)))
    tensors = () if table else place(graph).tensors()
    means = Averages()
    with tapped(context, model, [*tensors, *axes]) as path:
        run = open_runner(path, device=context.device).run

        def averaged(feed: Feed) -> Mapping[str, Array]:
            outputs = run(feed)
            for name, axis in axes.items():
                array = outputs[name] if name in outputs else feed[name]
                if array.dtype == np.float32 and array.size:
                    means.add(name, channel_means(array, axis))
            return outputs

        histograms = observe(averaged, tensors, samples, stage="equalize", emit=silent)
    table = table or make_table(FALLBACK, histograms, model=model, dataset=samples)
    return Request(rest="fp32", table=table, means=means.result())
