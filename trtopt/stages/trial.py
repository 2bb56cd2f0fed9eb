"""Trials: quantize a network and measure its output error on a few calibration samples.

Equalization, bias correction and `--method auto` are chosen by these errors. The stages that choose share one
pass of FP32 over these samples. All shards of a run must choose alike, so that their results can be merged: on a GPU,
the sessions are repeatable.

Touches: temporary files in the run directory; reads the samples.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.auto import FALLBACK, TINY
from trtopt.calibrate.histogram import MASK, Histogram
from trtopt.calibrate.ranges import Channels, Key
from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import CalibrationError, EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.events import Warned
from trtopt.parallel import in_order
from trtopt.precision import Request
from trtopt.run import Run
from trtopt.types import CalibrationTable, OnnxModel

Energies = Mapping[str, npt.NDArray[np.float64]]
"""Error energy and signal energy of each output for one sample, float64 [2]."""


@contextlib.contextmanager
def scratch(run: Run, name: str) -> Iterator[Path]:
    """Yield the path of a temporary file in the run directory. It is deleted afterwards, with its external data.

    Errors do not name the file, which the user never sees.
    """
    path = run.store.root / f".tmp-{name}"
    try:
        yield path
    except TrtoptError as error:
        for name in (str(path), path.name):
            error.what = error.what.replace(name, "a rewritten copy of the model")
        raise
    finally:
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def tapped(run: Run, model: OnnxModel, tensors: Sequence[str]) -> Iterator[Path]:
    """Yield the path of a temporary copy of the model whose outputs are these tensors."""
    from trtopt.calibrate.observe import tap

    with scratch(run, "tapped.onnx") as path:
        tap(model, tensors, path)
        yield path


def output_error(
    run: Run, model: OnnxModel, dataset: Dataset, precision_name: str
) -> Callable[[OnnxModel, Request | None], float]:
    """Return a function that quantizes a candidate and returns the relative error of its outputs.

    The candidate is a network that computes the same function as `model`. It is quantized to `precision_name` as the
    request says, or as a `rough` one says if the request is None.

    The error is the mean over the outputs. For a floating-point output it is the error energy over the signal energy;
    infinities of FP32, and numbers that mean infinity, are ignored. For any other output, such as indices, it is the
    share of values that differ.

    A failing trial does not end the stage. The error is infinite, with a warning, if the outputs cannot be computed, or
    are NaN or infinite. An output of another shape than in FP32, such as another number of boxes, is entirely wrong.

    Raises:
        EnvironmentUnableError: FP32 or a trial fails for a reason that may not recur, such as a lack of memory. The
            result must not be cached then.
    """
    from trtopt.calibrate.observe import callers
    from trtopt.engine.onnxruntime import REPEATABLE, open_runner
    from trtopt.graph.file import load_ir
    from trtopt.graph.prepare import BETWEEN_STAGES, save
    from trtopt.precision import precision

    references = survey(run, model, dataset).runs
    original = load_ir(model.path)  # loaded once, because most trials start from it
    warned: set[str] = set()

    def measure(candidate: OnnxModel, request: Request) -> float:
        graph = original.clone() if candidate == model else load_ir(candidate.path)
        precision(precision_name).apply(graph, request)
        with scratch(run, "trial.onnx") as path:
            save(graph, path, inline=BETWEEN_STAGES)
            runner = open_runner(path, device=run.device, cuda=REPEATABLE, callers=callers())
            found = in_order(runner.run, (feed for feed, _ in references), runner.callers)
            return relative_error(zip((reference for _, reference in references), found, strict=True))

    def error(candidate: OnnxModel, request: Request | None = None) -> float:
        try:
            return measure(candidate, request or rough(run, candidate, dataset, precision_name))
        except (EnvironmentUnableError, MissingDependencyError):
            raise
        except TrtoptError as failure:
            # The same failure usually ends all trials: warn once.
            if str(failure) not in warned:
                warned.add(str(failure))
                run.emit(Warned(f"a candidate could not be evaluated: {failure}"))
            return math.inf

    return error


def relative_error(pairs: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> float:
    """Return the relative error of the outputs over samples: the mean over the outputs.

    Args:
        pairs: for each sample FP32's outputs and the candidate's, by name.

    Raises:
        CalibrationError: an output is NaN, or infinite where FP32's is not.
    """
    return combined(energies(reference, outputs) for reference, outputs in pairs)


def energies(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> Energies:
    """Return the error energy and the signal energy of each output for one sample.

    Raises:
        CalibrationError: as `relative_error`.
    """
    return {name: np.array(_energies(name, array, outputs[name])) for name, array in reference.items()}


def combined(samples: Iterable[Energies]) -> float:
    """Return the relative error of the outputs over samples (`relative_error`) from their energies."""
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for sample in samples:
        for name, pair in sample.items():
            sums[name] = sums.get(name, np.zeros(2)) + pair
    # An output that is all zero in FP32 has no relative error: it counts as 1 if it differs at all.
    errors = [float(error / signal if signal else error > 0) for error, signal in sums.values()]
    return float(np.mean(errors))


def _energies(name: str, reference: Array, output: Array) -> tuple[float, float]:
    """Return the error energy and the signal energy of one output for one sample.

    For an output that is not floating-point, return the number of values that differ and the number of all values.

    Raises:
        CalibrationError: the output is NaN, or infinite where the reference is not.
    """
    # The number of results may depend on the values, such as the number of boxes: then all of them count as wrong.
    is_wrong = reference.shape != output.shape
    if reference.dtype.kind != "f":
        return float(reference.size if is_wrong else (reference != output).sum()), reference.size
    # A score of minus infinity excludes a class: it has no error to measure.
    counted = np.abs(np.float64(reference)) < MASK
    exact = np.float64(reference[counted])
    quantized = np.zeros_like(exact) if is_wrong else np.float64(output[counted])
    error_energy = float(np.square(exact - quantized).sum())
    if not math.isfinite(error_energy):
        raise CalibrationError(f"output {name!r} is NaN, or infinite where FP32 is not")
    return error_energy, float(np.square(exact).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """FP32 on a few samples: everything that equalization and the trials need of it, from one pass.

    Attributes:
        runs: each sample with the outputs of the network for it.
        histograms: the values of the tensors to quantize, masks and NaN included.
        means: the mean of each channel by tensor and channel axis, as `bias` needs them.
        channels: ranges and values of the activations that can be equalized.
    """

    runs: Sequence[tuple[Feed, Mapping[str, Array]]]
    histograms: Mapping[str, Histogram]
    means: Mapping[Key, npt.NDArray[np.float64]]
    channels: Mapping[str, Channels]


def survey(run: Run, model: OnnxModel, dataset: Dataset, *, outputs: bool = True) -> Survey:
    """Return the survey of a network, without samples and outputs unless `outputs`. The stages of a run share it."""
    key = (model.digest, dataset.digest)
    known: Survey | None = run.shared.get(key)
    if known is None or (outputs and not known.runs):
        known = run.shared[key] = _survey(run, model, dataset, outputs=outputs)
    return known


def adopt(run: Run, model: OnnxModel, dataset: Dataset, *, function: OnnxModel, values: OnnxModel) -> None:
    """Let a network share the outputs of `function`, and the statistics of `values`. Both must have been surveyed.

    The network must compute the same outputs as the first, from the same tensors as the second.
    """
    runs = survey(run, function, dataset).runs
    statistics = survey(run, values, dataset, outputs=False)
    run.shared[model.digest, dataset.digest] = replace(statistics, runs=runs)


def _survey(run: Run, model: OnnxModel, dataset: Dataset, *, outputs: bool) -> Survey:
    from trtopt.calibrate.observe import callers
    from trtopt.calibrate.ranges import Averages, ChannelRanges, channel_means, few
    from trtopt.engine.onnxruntime import REPEATABLE, open_runner
    from trtopt.graph.file import load_ir
    from trtopt.graph.query import constant, float_nodes
    from trtopt.precision.passes.operands import channel_axes
    from trtopt.precision.passes.pairs import links
    from trtopt.precision.passes.placement import place

    graph, samples = load_ir(model.path), few(dataset)
    axes = channel_axes(list(float_nodes(graph.graph)))
    tensors = place(graph).tensors()
    returned = [spec.name for spec in model.outputs] if outputs else []
    # A network may return a constant, such as anchors.
    constants = {value.name or "": array for value in graph.graph.outputs if (array := constant(value)) is not None}
    means = Averages()
    ranges = ChannelRanges(
        {link.name: link.axis for link in links(graph)}, dataset.groups.size if dataset.groups else 1
    )
    runs: list[tuple[Feed, Mapping[str, Array]]] = []
    histograms = {name: Histogram() for name in tensors}
    computed = [name for name in returned if name not in constants]
    with tapped(run, model, [*computed, *tensors, *(name for name, _ in axes), *ranges.axes]) as path:
        runner = open_runner(path, device=run.device, cuda=REPEATABLE, callers=callers())
        feeds = [samples.load(i) for i in range(len(samples))]
        for feed, found in zip(feeds, in_order(runner.run, feeds, runner.callers), strict=True):
            known = {**constants, **feed, **found}
            if outputs:
                runs.append((feed, {name: known[name] for name in returned}))
            for name, histogram in histograms.items():
                histogram.add(known[name])
            ranges.add(found)
            for name, axis in axes:
                if known[name].dtype == np.float32 and known[name].size:
                    means.add((name, axis), channel_means(known[name], axis))
    return Survey(runs=runs, histograms=histograms, means=means.result(), channels=ranges.result())


def rough(
    run: Run, model: OnnxModel, dataset: Dataset, precision_name: str, table: CalibrationTable | None = None
) -> Request:
    """Return a request with means per channel, and scales for the precision if `table` is None, from a few samples.

    It is good enough to compare networks, but not to convert them.

    Raises:
        CalibrationError: `table` is None, and a tensor to quantize is NaN; the message names it.
    """
    from trtopt.calibrate.ranges import few
    from trtopt.calibrate.table import make_table
    from trtopt.precision import precision

    known = survey(run, model, dataset, outputs=False)
    if table is None:
        format = precision(precision_name).FORMAT
        table = make_table(FALLBACK, _counted(known.histograms), model=model, dataset=few(dataset), format=format)
    return Request(rest="fp32", table=table, means=known.means)


def _counted(histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Return the histograms without masks.

    Raises:
        CalibrationError: a tensor is NaN; the message names it.
    """
    for name, histogram in histograms.items():
        histogram.check(name, "a sample of the trials")
    return {name: histogram.unmasked() for name, histogram in histograms.items()}


def decibels(before: float, after: float) -> float:
    """Return by how many dB the SQNR rises when the relative error falls from `before` to `after`."""
    return 10 * math.log10(max(before, TINY) / max(after, TINY))
