"""The report as JUnit XML, one test case a gate, for CI servers that show test results.

Touches: nothing.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from trtopt.report import words
from trtopt.types import Report

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """An XML document; a failed gate is a `failure`, a run without a verdict is one `skipped` case."""
    gates = report.comparison.gates if report.comparison is not None else ()
    failures = sum(not gate.passed for gate in gates)
    counts = {"tests": str(max(len(gates), 1)), "failures": str(failures), "errors": "0"}
    seconds = f"{sum(stage.seconds for stage in report.stages):.3f}"
    name = f"trtopt {report.command} {report.precision}".strip()
    root = ElementTree.Element("testsuites", {**counts, "time": seconds})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": name, **counts, "skipped": "0" if gates else "1", "time": seconds}
    )
    for gate in gates:
        attributes = {"classname": _clean(f"trtopt.{report.command}.{gate.output or 'all'}"), "name": gate.metric}
        case = ElementTree.SubElement(suite, "testcase", {**attributes, "time": "0"})
        if not gate.passed:
            message = _clean(gate.reason)
            ElementTree.SubElement(case, "failure", {"message": message, "type": "gate"}).text = message
    if not gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": f"trtopt.{report.command}", "name": "gate"})
        ElementTree.SubElement(case, "skipped", {"message": words.verdict(report)})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
