"""Report as JUnit XML, one test case per gate, for CI servers that show test results.

Touches: nothing. The shape is that of the Jenkins xUnit plugin's `junit-10.xsd`.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from trtopt.report.page import benchmark, headline, words
from trtopt.report.page.steps import steps
from trtopt.types import GateResult, Report
from trtopt.verdict import blocks, comparisons

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """Return an XML document with one test case per gate.

    A gate that blocks is a `failure`, whose type is its verdict. An inconclusive one (exit code 4) is not an `error`,
    because the measurement worked. A gate that is inconclusive without blocking, and a run without gates, are
    `skipped`. The error that ended a run is an `error` of a test case of its own.
    """
    gates = words.judged(report)
    failures = len(words.blocking(report)) if gates else int(report.verdict == "fail")
    skipped = sum(_is_skipped(each.gate, report) for each in gates) if gates else int(report.verdict == "unchecked")
    seconds = f"{sum(stage.seconds for stage in report.stages):.3f}"
    errors = int(report.error is not None)
    if errors and not gates:
        failures = skipped = 0
    tests = len(gates) + errors or 1
    counts = {"tests": str(tests), "failures": str(failures), "errors": str(errors), "time": seconds}
    root = Element("testsuites", counts)
    name = _clean(f"trtopt {report.command} {report.precision}".strip())
    suite = SubElement(root, "testsuite", {"name": name, **counts, "skipped": str(skipped)})
    _add_properties(suite, report)
    for each in gates:
        _add_case(suite, report, each)
    if report.error is not None:
        case = SubElement(suite, "testcase", {"classname": f"trtopt.{report.command}", "name": "run", "time": "0"})
        kind = f"exit code {report.error.exit_code}"
        SubElement(case, "error", {"message": _clean(report.error.message), "type": kind})
    elif not gates:
        case = SubElement(suite, "testcase", {"classname": f"trtopt.{report.command}", "name": "gate", "time": "0"})
        message = {"message": _clean(headline.verdict(report))}
        if skipped:
            SubElement(case, "skipped", message)
        elif failures:
            SubElement(case, "failure", {**message, "type": "gate"})
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _is_skipped(gate: GateResult, report: Report) -> bool:
    """Return whether a gate neither passed nor blocks."""
    return not gate.passed and not blocks(report, gate)


def _add_properties(suite: Element, report: Report) -> None:
    """Add the verdict, the data, and where each model ran."""
    facts = {"model": report.model, "precision": report.precision, "verdict": report.verdict}
    facts["summary"] = headline.verdict(report)
    for name, comparison in comparisons(report):
        facts["data"] = comparison.data
        facts["samples"] = str(comparison.samples)
        facts["fp32 ran in"] = comparison.baseline_ran
        facts[f"{name or 'candidate'} ran in"] = comparison.candidate_ran
    if report.benchmark is not None:
        facts |= dict(benchmark.facts(report.benchmark))
    if report.layers is not None:
        facts["first divergent layer"] = report.layers.jump or "none"
    properties = SubElement(suite, "properties")
    for name, value in facts.items():
        SubElement(properties, "property", {"name": _clean(name), "value": _clean(value)})


def _add_case(suite: Element, report: Report, judged: words.Judged) -> None:
    gate = judged.gate
    place = ".".join(part for part in ("trtopt", report.command, judged.candidate, gate.output or "all") if part)
    case = SubElement(suite, "testcase", {"classname": _clean(place), "name": _clean(gate.metric), "time": "0"})
    message = _clean(f"{judged.title}: {gate.reason}")
    if _is_skipped(gate, report):
        SubElement(case, "skipped", {"message": message})
    elif blocks(report, gate):
        failure = SubElement(case, "failure", {"message": message, "type": gate.verdict})
        failure.text = _clean(f"{message}\nvalue {gate.value!r}, limit {gate.limit!r}{_jump(report)}{_steps(report)}")


def _jump(report: Report) -> str:
    if report.layers is None or not report.layers.jump:
        return ""
    return f"\nfirst divergent layer: {report.layers.jump}; {report.layers.reason}"


def _steps(report: Report) -> str:
    return "".join(f"\n{step}" for step in steps(report))


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
