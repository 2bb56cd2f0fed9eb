"""Consequences of a verdict: the gates that block the deployment of an engine, and the exit code.

    130, 2   the run ended early: it was interrupted, or a stage failed
    1        a gate failed, a default one or one of --gate
    4        a gate of --gate, or the engine's, is inconclusive, without --allow-inconclusive
    3        not possible on this machine: no engine was built, or memory was exhausted
    0        otherwise; an inconclusive default gate is only reported

The first line that applies decides.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from trtopt.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_UNABLE, TrtoptError
from trtopt.types import Comparison, GateResult, Report

ENGINE_GATE = "engine"
"""Name of the gate on an engine beside its own typed graph (`compare.witness`)."""


def comparisons(report: Report) -> list[tuple[str, Comparison]]:
    """Return every comparison of the report, under the candidate's name where there are several (else an empty one)."""
    if report.comparison is not None:
        return [("", report.comparison)]
    return [(candidate.name, candidate.comparison) for candidate in report.candidates]


def drifted(found: Iterable[Comparison]) -> bool:
    """Return whether a gate failed on a measurement: only then can a higher precision help.

    Gates also fail that could not be evaluated, for example because the labels do not fit the output, and those that
    FP32 itself does not pass.
    """
    gates = ((comparison, gate) for comparison in found for gate in comparison.gates)
    return any(
        gate.verdict == "fail" and not math.isnan(gate.value) and not _fails_in_fp32(comparison, gate)
        for comparison, gate in gates
    )


def _fails_in_fp32(comparison: Comparison, gate: GateResult) -> bool:
    """Return whether a gate asks for a higher accuracy than FP32 has."""
    before = (each.values.get("accuracy_fp32", math.inf) for each in comparison.outputs if each.output == gate.output)
    return gate.metric == "accuracy" and min(before, default=math.inf) < gate.limit


def wrong(comparison: Comparison) -> bool:
    """Return whether an engine ran, and a gate on it failed."""
    failed = any(each.metric == ENGINE_GATE and each.verdict == "fail" for each in comparison.gates)
    return failed and bool(comparison.engine)


def blocks(report: Report, gate: GateResult) -> bool:
    """Return whether a gate of the report keeps the engine from being deployed."""
    if gate.verdict == "inconclusive":
        return not gate.default and not report.allow_inconclusive
    return gate.verdict == "fail"


def exit_code(report: Report, ended_by: TrtoptError | None = None) -> int:
    """Return the exit code of the run that made the report.

    `ended_by` is the error that ended the run early or prevented an engine (None: no error).
    """
    if ended_by is not None and ended_by.exit_code != EXIT_UNABLE:
        return ended_by.exit_code
    if report.verdict == "fail":
        return EXIT_GATE_FAILED
    gates = [gate for _, comparison in comparisons(report) for gate in comparison.gates]
    gates += report.benchmark.gates if report.benchmark else ()
    if any(blocks(report, gate) for gate in gates):
        return EXIT_INCONCLUSIVE
    return EXIT_PASS if ended_by is None else EXIT_UNABLE
