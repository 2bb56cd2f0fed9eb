"""What a verdict means for the run: which gates keep an engine from being deployed, and the exit code.

    130, 2   the run ended early: it was interrupted, or a stage failed
    1        a gate failed, whether the user asked for it or not
    4        a gate that the user asked for is inconclusive, without --allow-inconclusive
    3        this machine could not do all of it: no engine was built, or memory was exhausted
    0        else; an inconclusive default gate is reported, and decides nothing

The first line that applies counts.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_UNABLE, TrtoptError
from trtopt.types import Comparison, GateResult, Report


def comparisons(report: Report) -> list[tuple[str, Comparison]]:
    """Return every comparison of the report, under the candidate's name where there are several (else an empty one)."""
    if report.comparison is not None:
        return [("", report.comparison)]
    return [(candidate.name, candidate.comparison) for candidate in report.candidates]


def blocks(report: Report, gate: GateResult) -> bool:
    """Return whether a gate of the report keeps the engine from being deployed."""
    if gate.verdict == "inconclusive":
        return not gate.default and not report.allow_inconclusive
    return gate.verdict == "fail"


def exit_code(report: Report, ended_by: TrtoptError | None = None) -> int:
    """Return the exit code of the run that made the report.

    `ended_by` is what kept the run from its end, or from an engine (None: nothing did).
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
