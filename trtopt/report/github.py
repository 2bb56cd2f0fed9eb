"""The report as GitHub workflow commands: an annotation for each failed gate, the worst first.

Touches: nothing. See "Workflow commands for GitHub Actions" for the syntax and its escapes.
"""

from __future__ import annotations

import math

from trtopt.report import words
from trtopt.types import GateResult, Report

MAX_ANNOTATIONS = 10  # GitHub shows ten of each kind a step


def render(report: Report) -> str:
    """`::error` lines for failed gates, `::warning` lines for warnings, and a `::notice` when all is well."""
    gates = report.comparison.gates if report.comparison is not None else ()
    failed = sorted((gate for gate in gates if not gate.passed), key=_severity, reverse=True)
    lines = [_command("error", f"trtopt {words.gate_title(gate)}", gate.reason) for gate in failed[:MAX_ANNOTATIONS]]
    if len(failed) > MAX_ANNOTATIONS:
        lines.append(f"{len(failed) - MAX_ANNOTATIONS} more gates failed: see report.json")
    if report.verdict == "fail" and not failed:
        lines.append(_command("error", f"trtopt {report.command}", words.verdict(report)))
    lines += [_command("warning", "trtopt", line) for line in report.warnings[:MAX_ANNOTATIONS]]
    if report.verdict == "pass":
        lines.append(_command("notice", f"trtopt {report.command}", words.verdict(report)))
    if report.verdict == "unchecked":
        lines.append(_command("warning", f"trtopt {report.command}", words.verdict(report)))
    return "\n".join(lines) + "\n"


def _severity(gate: GateResult) -> float:
    """How far beyond its limit, relative to it; what could not be judged comes first."""
    excess = abs(gate.value - gate.limit) / max(abs(gate.limit), 1e-9)
    return math.inf if math.isnan(excess) else excess


def _command(kind: str, title: str, message: str) -> str:
    text = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={name}::{text}"
