"""One-line verdict of a report, the same in every format.

It says what failed or is inconclusive, what would settle it, and which numbers are no evidence for unseen data.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.compare.catalog import METRICS
from trtopt.compare.defaults import FLOORS
from trtopt.report.page import words
from trtopt.types import UNLIKE, Comparison, Report
from trtopt.verdict import comparisons
from trtopt.wording import counted

_MAX_NAMED = 5


def verdict(report: Report) -> str:
    """Return the verdict in one line: the word, what it rests on, and in parentheses what qualifies it.

    The verdict of a run that an error ended is the error; if there is a comparison, it follows.
    """
    if report.error is not None:
        judged = f"; the graph alone: {_verdict(report)}" if words.judged(report) else ""
        return f"ERROR: {report.error.message}{judged}"
    return _verdict(report)


def _verdict(report: Report) -> str:
    said = {"pass": _passed, "fail": _failed, "inconclusive": _inconclusive, "unchecked": _why_unchecked}
    notes = qualifiers(report)
    return f"{report.verdict.upper()}: {said[report.verdict](report)}" + (f" ({'; '.join(notes)})" if notes else "")


def qualifiers(report: Report) -> list[str]:
    """Return short phrases for what a reader must not overlook beside the verdict."""
    # The typed graph is judged even if no engine can be built here. That must not read as an engine that passed.
    unbuilt = report.command in ("convert", "tune") and report.engine is None
    found = ["no engine was built"] if unbuilt else []
    if nothing := words.unconverted(report):
        found.insert(0, nothing)
    if report.verdict == "inconclusive":
        found.append(_consequence(report, unbuilt=unbuilt))
    return found + _calibrated(report)


def _calibrated(report: Report) -> list[str]:
    """Say which candidates were calibrated on their evaluation samples, without names if all of them were."""
    compared = comparisons(report)
    names: dict[str, list[str]] = {}
    for name, comparison in compared:
        if comparison.calibrated_on:
            names.setdefault(_share(comparison), []).append(name)
    return [share if len(of) == len(compared) else f"{', '.join(of)}: {share}" for share, of in names.items()]


def _share(comparison: Comparison) -> str:
    if comparison.calibrated_on >= comparison.samples:
        return "measured on the calibration samples: no evidence for unseen data"
    share = f"{comparison.calibrated_on} of {comparison.samples}"
    return f"{share} evaluation samples were used for calibration: those are no evidence for unseen data"


def _passed(report: Report) -> str:
    exported = report.command == "export" and report.parity is not None
    count = len(report.parity.gates if exported and report.parity else words.judged(report))
    return f"{count}/{count} gates passed"


def _failed(report: Report) -> str:
    titles = [each.title for each in words.judged(report) if each.gate.verdict == "fail"]
    more = f"; and {len(titles) - _MAX_NAMED} more" if len(titles) > _MAX_NAMED else ""
    if any(warning.startswith(UNLIKE) for warning in report.warnings):
        why = f". Check the preprocessing first: {UNLIKE}"
    else:
        why = f"; first divergent layer: {report.layers.jump}" if report.layers and report.layers.jump else ""
    return f"{'; '.join(titles[:_MAX_NAMED]) or 'no gate was evaluated'}{more}{why}"


def _inconclusive(report: Report) -> str:
    """Explain the gate that needs the most samples (one that the user asked for, if any), and count the others."""
    found = [each for each in words.judged(report) if each.gate.verdict == "inconclusive"]
    first, *others = sorted(found, key=lambda each: (each.gate.default, -each.gate.needed))
    more = f"; and {counted(len(others), 'more gate')}" if others else ""
    return f"{first.title}: {_unsettled(first)}{more}"


def _unsettled(judged: words.Judged) -> str:
    """Say what was measured, what it does not show, and how many samples would be enough."""
    gate, metric = judged.gate, METRICS.get(judged.gate.metric)
    if metric is None or not judged.samples or not gate.needed:
        return gate.reason
    limit = f"{gate.limit:g}{metric.unit and ' '}{metric.unit}"
    shown = words.number(gate.metric, gate.value)
    if metric.sense == "drop":
        what = "a drop of" if judged.labelled else "a drop in agreement of"
        shown = f"{what} {shown}" if gate.value > 0 else "no drop"
    # More samples of this kind would settle the gate; the measured value tells whether it would pass or fail.
    if metric.sense == "at least":
        claim = "at least" if gate.value >= gate.limit else "less than"
    else:
        claim = "at most" if gate.value <= gate.limit else "more than"
    samples = f"{counted(judged.samples, 'sample')} show{'s' * (judged.samples == 1)}"
    return f"{samples} {shown}, but about {gate.needed} are needed to show {claim} {limit}"


def _consequence(report: Report, *, unbuilt: bool) -> str:
    """Say whether an inconclusive verdict fails the run, and how to change that."""
    gates = [each.gate for each in words.judged(report)]
    if any(not gate.default for gate in gates if gate.verdict == "inconclusive"):
        return "accepted by --allow-inconclusive" if report.allow_inconclusive else "exit 4 unless --allow-inconclusive"
    # With several outputs, the whole flag would be too long for this line.
    # The floors stay beside the user's gates.
    gates = [gate for gate in gates if gate.metric not in FLOORS or gate.verdict == "inconclusive"]
    flag = "--gate"
    if len({gate.output for gate in gates}) == 1 and all(gate.metric in METRICS for gate in gates):
        limits = dict.fromkeys(f"{gate.metric}={gate.limit:g}{METRICS[gate.metric].unit}" for gate in gates)
        flag += f" {','.join(limits)}"
    return f"{'' if unbuilt else 'exit 0: '}an inconclusive default gate does not count; with {flag} it does"


def _why_unchecked(report: Report) -> str:
    if report.command == "bench":
        return "no gate was given"
    if report.command == "package":
        return "no server has loaded the models: --verify does"
    if report.command == "sensitivity":
        return "errors were measured, nothing was judged"
    if report.parity is not None and report.parity.verdict == "fail" and report.command == "export":
        return "export drift accepted because of --allow-export-drift"
    return "no comparison was requested"
