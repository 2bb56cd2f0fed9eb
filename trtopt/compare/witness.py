"""An engine beside its own typed graph: the second witness of a comparison, and the gate `engine`.

An engine can be wrong where its graph is right. (TensorRT 8.5.3.1 on an H100 built a depthwise convolution into an
engine with an output SQNR of 2.8 dB whose graph has 36.9.) So each output of an engine is compared with the same output
of the graph, which onnxruntime computes.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from trtopt.compare import gate
from trtopt.compare.catalog import METRICS
from trtopt.compare.gates import Gate
from trtopt.compare.measures.outputs import Outputs
from trtopt.compare.metrics import Metrics
from trtopt.types import Comparison, EngineDrift, GateResult
from trtopt.verdict import ENGINE_GATE

_LARGEST = {"fp32": 0.1, "fp16": 3.0, "bf16": 3.0, "int8": 1.0, "fp8": 1.0}
"""Largest loss in dB by precision.

An engine adds the products of a layer in another order, and with other intermediate types, than onnxruntime. In 16 bits
that is as large as the rounding itself; in INT8 it is small beside the quantization error.
"""

_ENOUGH = {"fp32": 80.0, "fp16": 53.0, "bf16": 53.0, "int8": 51.0, "fp8": 51.0}
"""SQNR in dB above which a better graph does not count: below FP32, an engine of 50 dB passes whatever its graph has.

That matters for INT8 if most nodes are kept in 16 bits.
"""


class Witness:
    """Accumulator of an engine's outputs beside those of FP32 and of its graph, batch by batch."""

    def __init__(self, *, apart: bool) -> None:
        # Of the engine and of its graph compared with FP32, and of the engine compared with its graph.
        self._metrics = tuple(Metrics({}, apart=apart, plain=True) for _ in range(3))

    def add(self, outputs: Outputs) -> None:
        """Add the outputs of one batch.

        Raises:
            ModelError: an output of the graph differs from the engine's or FP32's in shape or type.
        """
        reference, engine, graph = outputs.reference, outputs.candidate, outputs.graph
        for metrics, pair in zip(
            self._metrics, ((reference, engine), (reference, graph), (graph, engine)), strict=True
        ):
            metrics.add(Outputs(reference=pair[0], candidate=pair[1], indices=outputs.indices))

    def drifts(self, ids: Sequence[str]) -> tuple[EngineDrift, ...]:
        """Return one entry per output: its SQNR, or for integers the percentage of equal elements."""
        values = [{drift.output: drift.values for drift in metrics.drifts(ids)} for metrics in self._metrics]
        entries = []
        for name in values[0]:
            metric = "sqnr" if "sqnr" in values[0][name] else "equal"
            engine, graph, between = (each[name].get(metric, math.nan) for each in values)
            entries.append(EngineDrift(output=name, metric=metric, engine=engine, graph=graph, between=between))
        return tuple(entries)


def judged(comparison: Comparison, gates: Sequence[Gate], precision: str) -> Comparison:
    """Return the comparison with its verdict, gate results and remarks, as `gate.judged`, and with the gate `engine`.

    A wrong engine fails whatever the other gates say. A gate of the user on `engine` takes the place of the default.

    Args:
        comparison: the measured drift.
        gates: those of the user.
        precision: the precision of the candidate, which the default limit depends on.
    """
    losses = {drift.output: _loss(drift, precision) for drift in comparison.engine}
    outputs = tuple(
        replace(output, values={**output.values, ENGINE_GATE: losses[output.output]})
        if output.output in losses
        else output
        for output in comparison.outputs
    )
    result = gate.judged(replace(comparison, outputs=outputs), gates)
    asked = {each.output for each in result.gates if each.metric == ENGINE_GATE}
    added = [_judged(drift, precision) for drift in comparison.engine if drift.output not in asked]
    if comparison.engine_unable and ENGINE_GATE not in {each.metric for each in result.gates}:
        added.append(_open(comparison.engine_unable))
    results = (*result.gates, *added)
    return replace(result, gates=results, verdict=gate.verdict(results))


def _open(reason: str) -> GateResult:
    """Return the result for an engine that was not run. It counts as a gate of the user: the run must not pass."""
    return GateResult(output="engine", metric=ENGINE_GATE, value=0.0, limit=0.0, verdict="inconclusive", reason=reason)


def _judged(drift: EngineDrift, precision: str) -> GateResult:
    """Return the result of the default gate on an output; a loss that is NaN fails."""
    metric = METRICS[drift.metric]
    largest = _LARGEST.get(precision, 1.0) if drift.metric == "sqnr" else 1.0
    loss = _loss(drift, precision)
    passed = loss <= largest
    engine, graph = (f"{value:{metric.format}} {metric.unit}" for value in (drift.engine, drift.graph))
    reason = f"the engine's {metric.label} is {engine}, its graph's {graph}"
    if not passed:
        reason += ": TensorRT does not compute what the graph says"
    return GateResult(
        output=drift.output,
        metric=ENGINE_GATE,
        value=loss,
        limit=largest,
        verdict="pass" if passed else "fail",
        reason=reason,
        default=True,
    )


def _loss(drift: EngineDrift, precision: str) -> float:
    """Return by how much the engine is below its graph, where the graph counts up to `_ENOUGH`."""
    enough = _ENOUGH.get(precision, math.inf) if drift.metric == "sqnr" else math.inf
    if math.isnan(drift.engine) or math.isnan(drift.graph) or drift.engine == -math.inf:
        return math.nan  # which fails: such outputs cannot be compared
    if drift.engine == drift.graph:  # both may be infinite
        return 0.0
    return max(0.0, min(drift.graph, enough) - drift.engine)
