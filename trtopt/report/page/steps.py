"""Next steps after a run that failed: a reason, and a command that can be pasted.

Touches: nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from trtopt.types import GUARDED, Report
from trtopt.verdict import comparisons, drifted

_KEPT = 3
"""Number of nodes to keep in higher precision that a step names."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step: its purpose, and the command."""

    why: str
    command: str

    def __str__(self) -> str:
        """Return both as one line."""
        return f"{self.why}: {self.command}"


def steps(report: Report) -> tuple[Step, ...]:
    """Return the next steps, the first one first; none if nothing failed or nothing is known to help."""
    search = [Step("to search for the nodes to keep", report.tune_with)] if report.tune_with else []
    return (*_locate(report), *_keep_faulty(report), *_keep_noisiest(report), *search)


def _locate(report: Report) -> list[Step]:
    """Return the command that locates the source of drift, unless it is known already."""
    failed = [
        (name or str(report.run_dir), comparison) for name, comparison in comparisons(report) if drifted([comparison])
    ]
    if not failed or report.layers is not None or not report.model.endswith(".onnx"):
        return []
    candidate, comparison = failed[0]
    words = ["trtopt", "compare", report.model, candidate, "--data", comparison.data, "--layers"]
    return [Step("to find the first divergent layer", shlex.join(words))]


def _keep_faulty(report: Report) -> list[Step]:
    if report.fault is None or not report.fault.nodes:
        return []
    return [_keeping(report, report.fault.nodes, "to keep the nodes that make the engine wrong in higher precision")]


def _keep_noisiest(report: Report) -> list[Step]:
    """Return the command that keeps the nodes that add the most error in higher precision."""
    measured = drifted(comparison for _, comparison in comparisons(report))
    if not measured or report.layers is None or report.fault is not None:
        return []
    lowered = [layer for layer in report.layers.layers if layer.precision == report.precision and layer.added > 0]
    worst = sorted(lowered, key=lambda layer: -layer.added)[:_KEPT]
    if not worst:
        return []
    nodes = [layer.node for layer in worst]
    return [_keeping(report, nodes, "to keep the nodes that add the most error in higher precision")]


def _keeping(report: Report, nodes: Iterable[str], why: str) -> Step:
    """Return the conversion again with flags that keep the nodes; only the flags, if its command line is unknown.

    The nodes that the guard kept are named, too: with others kept, it could decide that it needs them no longer.
    """
    decisions = report.typed.decisions if report.typed else ()
    guarded = [decision.node for decision in decisions if decision.reason.startswith(GUARDED)]
    flags = " ".join(f"--keep {shlex.quote(node)}" for node in (*nodes, *guarded))
    if report.command == "convert" and report.invocation:
        return Step(why, f"{report.invocation} {flags}")
    return Step(f"{why}, convert again with", flags)
