"""A typed graph as users load it: onnxruntime's default options, beside the simulation that is reported.

Drift is measured on a rewritten graph, which rounds to 16 bits as a GPU does, and without onnxruntime's riskier
fusions. A user who loads the file itself gets neither, so a few samples are run that way, too.

Touches: nothing itself; the runners run models.
"""

from __future__ import annotations

from trtopt.compare.catalog import METRICS
from trtopt.compare.measures.outputs import Outputs
from trtopt.compare.pair import Pair
from trtopt.compare.witness import Witness
from trtopt.data.dataset import Dataset, spread
from trtopt.types import LoadedDrift

SAMPLES = 4
"""Largest number of samples to run: it is the fusions that are checked, not the statistics."""

_LARGEST = {"sqnr": 3.0, "equal": 1.0}
"""Loss, in dB or in percentage points, up to which a difference may be rounding."""

_ENOUGH = 50.0
"""SQNR in dB above which a better simulation does not count."""


def loaded(pair: Pair, dataset: Dataset) -> tuple[LoadedDrift, ...]:
    """Return the drift of each output as loaded (`pair.candidate`) and as simulated (`pair.graph`), on a few samples.

    Raises:
        DataError: onnxruntime fails on a sample.
        ModelError: an output differs in shape or type.
        OutOfMemoryError: the memory is exhausted.
    """
    witness = Witness(apart=False)
    assert pair.graph is not None
    for index in spread(len(dataset), SAMPLES):
        feed = dataset.load(index)
        reference, candidate, graph = (runner.run(feed) for runner in (pair.baseline, pair.candidate, pair.graph))
        witness.add(Outputs(reference=reference, candidate=candidate, graph=graph, indices=(index,)))
    return tuple(
        LoadedDrift(output=drift.output, metric=drift.metric, loaded=drift.engine, simulated=drift.graph)
        for drift in witness.drifts(dataset.ids)
    )


def warnings(drifts: tuple[LoadedDrift, ...], name: str, where: str) -> tuple[str, ...]:
    """Return a warning for each output that is worse as loaded than as simulated, by more than rounding."""
    lines = []
    for drift in drifts:
        simulated = min(drift.simulated, _ENOUGH) if drift.metric == "sqnr" else drift.simulated
        limit = _LARGEST[drift.metric]
        if drift.loaded == drift.simulated or simulated - drift.loaded <= limit:
            continue
        metric = METRICS[drift.metric]
        own, other = (f"{value:{metric.format}} {metric.unit}" for value in (drift.loaded, drift.simulated))
        lines.append(
            f"{name} itself, in {where} with default options, has {metric.label} {own} for {drift.output}, not the "
            f"{other} of the simulation: onnxruntime changes what the graph computes. Run it with "
            "graph_optimization_level ORT_DISABLE_ALL, or use the engine"
        )
    return tuple(lines)
