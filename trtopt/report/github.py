"""The report as GitHub workflow commands: an annotation for each failed gate, the worst first.

Touches: nothing. See "Workflow commands for GitHub Actions" for the syntax and its escapes.
"""

from __future__ import annotations

import math

from trtopt.report import words
from trtopt.types import GateResult, Report

MAX_ANNOTATIONS = 10  # GitHub shows ten of each kind a step


def render(report: Report) -> str:
    """`::error` lines for the layer where drift jumps and for gates that do not hold, `::warning` lines for warnings,
    and a `::notice` when all is well.
    """
    failed = sorted(words.blocking(report), key=lambda each: _severity(each.gate), reverse=True)
    lines = []
    if report.layers is not None and report.layers.jump:
        kind = "error" if failed else "warning"
        lines.append(_command(kind, f"trtopt layer {report.layers.jump}", report.layers.reason))
    room = MAX_ANNOTATIONS - len(lines)
    lines += [_command("error", f"trtopt {each.title}", each.gate.reason) for each in failed[:room]]
    if len(failed) > room:
        lines.append(f"{len(failed) - room} more gates do not hold: see report.json")
    if report.verdict == "fail" and not failed:
        lines.append(_command("error", f"trtopt {report.command}", words.verdict(report)))
    lines += [_command("warning", "trtopt", line) for line in report.warnings[:MAX_ANNOTATIONS]]
    if report.verdict == "pass":
        lines.append(_command("notice", f"trtopt {report.command}", words.verdict(report)))
    if report.verdict == "unchecked" or (report.verdict == "inconclusive" and not failed):
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
