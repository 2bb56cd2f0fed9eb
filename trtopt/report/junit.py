"""The report as JUnit XML, one test case a gate, for CI servers that show test results.

Touches: nothing. The shape is that of the Jenkins xUnit plugin's `junit-10.xsd`.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from trtopt.report import words
from trtopt.types import GateResult, Report

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """An XML document; a failed gate is a `failure`, and a run that nobody judged is one `skipped` case."""
    gates = report.comparison.gates if report.comparison is not None else ()
    failures = sum(not gate.passed for gate in gates) if gates else int(report.verdict == "fail")
    skipped = int(not gates and report.verdict == "unchecked")
    seconds = f"{sum(stage.seconds for stage in report.stages):.3f}"
    counts = {"tests": str(max(len(gates), 1)), "failures": str(failures), "errors": "0", "time": seconds}
    root = Element("testsuites", counts)
    name = _clean(f"trtopt {report.command} {report.precision}".strip())
    suite = SubElement(root, "testsuite", {"name": name, **counts, "skipped": str(skipped)})
    _add_properties(suite, report)
    for gate in gates:
        _add_case(suite, report.command, gate)
    if not gates:
        case = SubElement(suite, "testcase", {"classname": f"trtopt.{report.command}", "name": "gate", "time": "0"})
        message = {"message": words.verdict(report)}
        if skipped:
            SubElement(case, "skipped", message)
        elif failures:
            SubElement(case, "failure", {**message, "type": "gate"})
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _add_properties(suite: Element, report: Report) -> None:
    """Say what was measured on, and where it ran."""
    facts = {"model": report.model, "precision": report.precision, "verdict": report.verdict}
    if report.comparison is not None:
        facts["data"] = report.comparison.data
        facts["samples"] = str(report.comparison.samples)
        facts["fp32 ran in"] = report.comparison.baseline_ran
        facts["candidate ran in"] = report.comparison.candidate_ran
    properties = SubElement(suite, "properties")
    for name, value in facts.items():
        SubElement(properties, "property", {"name": name, "value": _clean(value)})


def _add_case(suite: Element, command: str, gate: GateResult) -> None:
    names = {"classname": _clean(f"trtopt.{command}.{gate.output or 'all'}"), "name": gate.metric, "time": "0"}
    case = SubElement(suite, "testcase", names)
    if not gate.passed:
        message = _clean(f"{words.gate_title(gate)}: {gate.reason}")
        failure = SubElement(case, "failure", {"message": message, "type": "gate"})
        failure.text = f"{message}\nvalue {gate.value!r}, limit {gate.limit!r}"


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
