"""The report as GitHub workflow commands: the verdict, and an annotation for each gate that blocks, the worst first.

Touches: nothing. See "Workflow commands for GitHub Actions" for the syntax and its escapes.
"""

from __future__ import annotations

import math

from trtopt.report.page import headline, words
from trtopt.report.page.steps import steps
from trtopt.types import GateResult, Report

MAX_ANNOTATIONS = 10  # GitHub shows ten of each kind per step


def render(report: Report) -> str:
    """Return the verdict as one annotation, followed by annotations for details.

    The verdict is `::error` if it fails the run, `::notice` if it is a pass, and `::warning` otherwise. The first
    divergent layer and each gate that blocks are `::error` lines; warnings are `::warning` lines, and the next steps
    `::notice` lines. Notes are plain lines of the log, not annotations.
    """
    blocking = sorted(words.blocking(report), key=lambda each: _severity(each.gate), reverse=True)
    stops = bool(blocking) or report.verdict == "fail" or report.error is not None
    kind = "error" if stops else "notice" if report.verdict == "pass" else "warning"
    lines = [_command(kind, f"trtopt {report.command}", headline.verdict(report))]
    if report.layers is not None and report.layers.jump:
        kind = "error" if stops else "warning"
        lines.append(_command(kind, f"trtopt layer {report.layers.jump}", report.layers.reason))
    room = MAX_ANNOTATIONS - len(lines)
    lines += [_command("error", f"trtopt {each.title}", each.gate.reason) for each in blocking[:room]]
    if len(blocking) > room:
        lines.append(f"{len(blocking) - room} more gates did not pass: see report.json")
    room = MAX_ANNOTATIONS - sum(line.startswith("::warning") for line in lines)
    lines += [_command("warning", "trtopt", line) for line in report.warnings[:room]]
    lines += [_command("notice", "trtopt: what to do next", str(step)) for step in steps(report)]
    lines += [f"note: {' '.join(words.plain(line).split())}" for line in report.notes]
    return "\n".join(lines) + "\n"


def _severity(gate: GateResult) -> float:
    """Return how far the value is beyond its limit, relative to the limit; infinity if it could not be judged."""
    excess = abs(gate.value - gate.limit) / max(abs(gate.limit), 1e-9)
    return math.inf if math.isnan(excess) else excess


def _command(kind: str, title: str, message: str) -> str:
    text = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={name}::{text}"
