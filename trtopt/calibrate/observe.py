"""Histograms of a model's tensors: run the FP32 model over the samples, one at a time, and count the values.

Each run takes one sample, whatever the dataset's batch size. onnxruntime's kernels may sum in another order for another
batch size. With single samples the table is the same, bit for bit, for any order of the samples and any batch size.

Touches: `tap` reads the model and writes a copy; `observe` calls the function that runs the model.
"""

from __future__ import annotations

import difflib
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtopt.calibrate.histogram import Histogram
from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import CalibrationError, DataError, ModelError
from trtopt.events import Emit, Progress
from trtopt.graph.file import external_files, load_proto
from trtopt.graph.parsed import own
from trtopt.graph.unread import consumed
from trtopt.parallel import cores
from trtopt.types import OnnxModel

if TYPE_CHECKING:
    import onnx

_MAX_WORKERS = 4
"""Each worker holds the activations of one sample in memory."""


def callers() -> int:
    """Return the number of workers: how many samples to run at once on this machine.

    A worker that runs a sample and then counts it is never idle. If several threads shared one sample instead, most of
    them would wait while it is loaded and counted.
    """
    return min(_MAX_WORKERS, cores())


def tap(model: OnnxModel, tensors: Sequence[str], path: Path) -> None:
    """Write a copy of the model to `path` whose outputs are `tensors`.

    The model's own outputs are removed unless they are among `tensors`, and so are the nodes that are then not needed.
    Graph inputs among `tensors` do not become outputs: `observe` reads them from the feed. If no output is left, the
    model's first output is kept, because a graph must have one. External data is referenced, not copied.

    Raises:
        ModelError: a tensor is not computed by the main graph, or the model has external data and `path` is in
            another folder.
    """
    import onnx

    proto = own(load_proto(model.path))
    graph = proto.graph
    if external_files(proto) and path.parent.resolve() != model.path.parent.resolve():
        raise ModelError(
            f"{path} cannot share the external data of {model.path}",
            why="external data is looked up in the folder of the model",
            fix=f"Write the copy to {model.path.parent}",
        )
    typed = {value.name: value for value in [*graph.value_info, *graph.output]}
    computed = {name for node in graph.node for name in node.output if name}
    inputs = {value.name for value in graph.input}
    wanted = [name for name in dict.fromkeys(tensors) if name not in inputs]
    for name in wanted:
        if name not in computed:
            closest = difflib.get_close_matches(name, computed, 1)
            raise ModelError(
                f"tensor {name!r} cannot be observed",
                why=f"no node of the main graph of {model.path.name} computes it",
                fix=f"Did you mean {closest[0]!r}?" if closest else "",
            )
    wanted = wanted or [graph.output[0].name]
    # An output without a type is allowed: onnxruntime infers it.
    outputs = [typed.get(name) or onnx.ValueInfoProto(name=name) for name in wanted]
    # Copy before the originals are deleted from the graph.
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del graph.output[:]
    graph.output.extend(copies)
    _prune(graph)
    onnx.save(proto, str(path))


def _prune(graph: onnx.GraphProto) -> None:
    """Remove the nodes and initializers that no output needs, because onnxruntime would compute them anyway."""
    needed = {value.name for value in graph.output}
    kept_nodes = []
    # Nodes are sorted topologically, so one pass from the end finds all producers of needed tensors.
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept_nodes.append(node)
            needed.update(consumed(node))
    kept_nodes.reverse()
    del graph.node[:]
    graph.node.extend(kept_nodes)
    unneeded = {tensor.name for tensor in graph.initializer} - needed
    # Older models list initializers among the inputs as well.
    for field in (graph.initializer, graph.input):
        kept = [entry for entry in field if entry.name not in unneeded]
        del field[:]
        field.extend(kept)


def observe(
    run: Callable[[Feed], Mapping[str, Array]],
    tensors: Sequence[str],
    dataset: Dataset,
    *,
    stage: str,
    emit: Emit,
    callers: int = 1,
) -> dict[str, Histogram]:
    """Return a histogram of each of `tensors` over all samples. Memory does not grow with the number of samples.

    Masks are counted; `Histogram.unmasked` leaves them out.

    Args:
        run: takes the feed of one sample and returns the model's outputs by name, such as a session over the copy that
            `tap` writes. It must be thread-safe if there are several workers.
        tensors: outputs of `run`, or inputs of the model; the latter are read from the feed.
        dataset: the samples.
        stage: the stage that progress is reported for.
        emit: receives the progress.
        callers: number of workers. Each loads, runs and counts one sample at a time.

    Raises:
        DataError: the dataset is empty.
        CalibrationError: a tensor is NaN (the message names the tensor and the first such sample), its dtype is not
            floating-point, or it is missing.
    """
    if not len(dataset):
        raise DataError(
            f"{dataset.source} holds no samples",
            why="scales are derived from the values that samples produce",
            fix="Give 100 to 500 samples like those in production",
        )
    names = tuple(dict.fromkeys(tensors))
    # Each worker counts into histograms of its own, which are merged at the end.
    per_worker = [{name: Histogram() for name in names} for _ in range(callers)]
    idle = deque(per_worker)

    def run_and_count(index: int) -> None:
        histograms = idle.pop()
        try:
            feed = dataset.load(index)
            _count(histograms, {**feed, **run(feed)}, dataset.ids[index])
        finally:
            idle.append(histograms)

    started = time.perf_counter()
    with ThreadPoolExecutor(callers, thread_name_prefix="trtopt-calibrate") as pool:
        pending = deque(pool.submit(run_and_count, index) for index in range(len(dataset)))
        try:
            # In the order of the dataset, so that the first bad sample is the one that is reported.
            while pending:
                pending.popleft().result()
                done = len(dataset) - len(pending)
                rate = done / (time.perf_counter() - started)
                emit(Progress(stage, done, len(dataset), f"{rate:.1f} samples/s{_peak()}"))
        finally:
            pool.shutdown(cancel_futures=True)
    merged, *others = per_worker
    for other in others:
        for name in names:
            merged[name].merge(other[name])
    return merged


def _peak() -> str:
    """Return the peak memory of this process as a part of a note; empty where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts in bytes, Linux in KiB
    return f", peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.0f} MiB"


def _count(histograms: Mapping[str, Histogram], tensors: Mapping[str, Array], sample: str) -> None:
    """Count the tensors of one sample in the histograms of the same names.

    Raises:
        CalibrationError: a tensor is missing, its dtype is not floating-point, or it is NaN; the message names the
            tensor, and for the last the sample.
    """
    for name, histogram in histograms.items():
        array = tensors.get(name)
        if array is None:
            raise CalibrationError(f"tensor {name!r} was not observed", why="the model's run did not return it")
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            dtype = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise CalibrationError(
                f"tensor {name!r} cannot be calibrated",
                why=f"its dtype is {dtype}, and only floating-point tensors have a scale",
            )
        histogram.add(array)
        histogram.check(name, f"sample {sample}")
