"""Run the FP32 model over the samples, each on its own, and count what flows through its tensors.

One sample a run, whatever the dataset's batch size: onnxruntime's kernels may sum in another order for another batch
size, and only this makes the table the same, bit for bit, for any order of the samples and any way of loading them.

Touches: `tap` reads the model and writes the copy it is asked for; `observe` calls the function that runs the model.
"""

from __future__ import annotations

import difflib
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtopt.calibrate.histogram import Histogram
from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import CalibrationError, DataError, ModelError
from trtopt.events import Emit, Progress
from trtopt.export.onnx import external_files, load_proto
from trtopt.types import OnnxModel

if TYPE_CHECKING:
    import onnx

_MOST_CALLERS = 4
"""Each holds the activations of a sample of its own."""


def callers() -> int:
    """How many samples to run at once on this machine.

    A thread that runs a sample and counts it is never idle; of the threads that share one sample most wait while it is
    read and counted.
    """
    return min(_MOST_CALLERS, len(os.sched_getaffinity(0)))


def tap(model: OnnxModel, tensors: Sequence[str], path: Path) -> None:
    """Write a copy of the model to `path` that gives `tensors` as its outputs.

    The model's own outputs go, unless asked for, and with them the nodes that nothing needs. Graph inputs among
    `tensors` are no outputs of the copy: `observe` takes them from the feed. When nothing else is asked for, the
    model's first output stays, as a graph must have one. External data is not copied but named again.

    Raises:
        ModelError: a tensor is not computed by the main graph, or the model has external data and `path` is not
            beside it.
    """
    import onnx

    proto = load_proto(model.path)
    graph = proto.graph
    if external_files(proto) and path.parent.resolve() != model.path.parent.resolve():
        raise ModelError(
            f"{path} cannot share the external data of {model.path}",
            why="external data is found beside the model that names it",
            fix=f"Write the copy to {model.path.parent}",
        )
    known = {value.name: value for value in [*graph.value_info, *graph.output]}
    computed = {name for node in graph.node for name in node.output if name}
    inputs = {value.name for value in graph.input}
    wanted = [name for name in dict.fromkeys(tensors) if name not in inputs]
    for name in wanted:
        if name not in computed:
            near = difflib.get_close_matches(name, computed, 1)
            raise ModelError(
                f"tensor {name!r} cannot be observed",
                why=f"no node of the main graph of {model.path.name} computes it",
                fix=f"Did you mean {near[0]!r}?" if near else "",
            )
    wanted = wanted or [graph.output[0].name]
    # onnxruntime infers the type of an output that has none.
    outputs = [known.get(name) or onnx.ValueInfoProto(name=name) for name in wanted]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del graph.output[:]
    graph.output.extend(copies)
    _prune(graph)
    onnx.save(proto, str(path))


def _prune(graph: onnx.GraphProto) -> None:
    """Drop the nodes and initializers that no output needs: onnxruntime would compute them all the same."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):  # nodes are sorted: what a node reads was written before it
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_reads(node))
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    dropped = {tensor.name for tensor in graph.initializer} - needed
    for field in (graph.initializer, graph.input):
        rest = [entry for entry in field if entry.name not in dropped]
        del field[:]
        field.extend(rest)


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            # What a subgraph gives may be a tensor of the graph around it.
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _reads(inner)


def observe(
    run: Callable[[Feed], Mapping[str, Array]],
    tensors: Sequence[str],
    dataset: Dataset,
    *,
    stage: str,
    emit: Emit,
    callers: int = 1,
) -> dict[str, Histogram]:
    """Return a histogram of each of `tensors` over all samples.

    `run` takes one sample's feed and returns the model's outputs by name: a session over a `tap`ped copy. As many
    threads as `callers` load samples and call it at once, each with one of its own. Tensors that `run` does not return
    are looked for in the feed. Memory does not grow with the number of samples.

    Raises:
        DataError: the dataset is empty.
        CalibrationError: a tensor is NaN or infinite for a sample (both are named, the first of the dataset), is not
            of floating-point type, or is missing.
    """
    if not len(dataset):
        raise DataError(
            f"{dataset.source} holds no samples",
            why="scales are derived from the values that samples produce",
            fix="Give 100 to 500 samples like those of production",
        )
    names = tuple(dict.fromkeys(tensors))
    counted = [{name: Histogram() for name in names} for _ in range(callers)]
    idle = deque(counted)

    def count(index: int) -> None:
        histograms = idle.pop()
        try:
            feed = dataset.load(index)
            for name, array in _pick(run(feed), feed, names):
                histograms[name].add(array)
                histograms[name].check(name, f"sample {dataset.ids[index]}")
        finally:
            idle.append(histograms)

    started = time.perf_counter()
    with ThreadPoolExecutor(callers, thread_name_prefix="trtopt-calibrate") as pool:
        pending = deque(pool.submit(count, index) for index in range(len(dataset)))
        try:
            while pending:
                pending.popleft().result()
                done = len(dataset) - len(pending)
                rate = done / (time.perf_counter() - started)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
                emit(Progress(stage, done, len(dataset), f"{rate:.1f} samples/s, peak {peak:.0f} MiB"))
        finally:
            pool.shutdown(cancel_futures=True)
    first, *others = counted
    for other in others:
        for name in names:
            first[name].merge(other[name])
    return first


def _pick(outputs: Mapping[str, Array], feed: Mapping[str, Array], names: Iterable[str]) -> Iterator[tuple[str, Array]]:
    for name in names:
        array = outputs[name] if name in outputs else feed.get(name)
        if array is None:
            raise CalibrationError(f"tensor {name!r} was not observed", why="the model's run did not return it")
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise CalibrationError(
                f"tensor {name!r} cannot be calibrated",
                why=f"it holds {kind}, and only floating-point tensors have a scale",
            )
        yield name, array
