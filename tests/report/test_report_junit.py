"""Tests of the report as JUnit XML: one case per gate, correct counts, and the structure that CI servers read."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from report.reports import ALL, ALLOWED, FAILED, INCONCLUSIVE, JUMPED, PASSED, SEVERAL

from trtopt.report import render
from trtopt.types import Report
from trtopt.verdict import exit_code

every_report = pytest.mark.parametrize("report", ALL.values(), ids=ALL.keys())


def _suite(report: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(render("junit", report))
    (suite,) = root
    return suite


@every_report
def test_junit_is_xml_whose_counts_are_true(report: Report) -> None:
    suite = _suite(report)
    cases = suite.findall("testcase")
    assert suite.get("tests") == str(len(cases))
    assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    assert (int(suite.get("failures", "")) > 0) == (exit_code(report) != 0)
    assert (int(suite.get("skipped", "")) > 0) == (
        report.verdict in ("unchecked", "inconclusive") and not exit_code(report)
    )


@every_report
def test_junit_has_the_shape_that_ci_servers_read(report: Report) -> None:
    root = ElementTree.fromstring(render("junit", report))
    suite = _suite(report)
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    assert root.keys() == ["tests", "failures", "errors", "time"]
    assert suite.keys() == ["name", "tests", "failures", "errors", "time", "skipped"]
    assert [child.tag for child in suite] == ["properties", *["testcase"] * (len(suite) - 1)]
    assert all(case.keys() == ["classname", "name", "time"] for case in suite.findall("testcase"))
    assert all(set(found.keys()) == {"message", "type"} for found in suite.iter("failure"))


def test_junit_has_a_case_per_gate_and_says_what_failed() -> None:
    suite = _suite(FAILED)
    names = [(case.get("classname"), case.get("name")) for case in suite.findall("testcase")]
    assert names == [
        ("trtopt.convert.logits", "top1"),
        ("trtopt.convert.boxes:0", "sqnr"),
        ("trtopt.convert.all", "equal"),
    ]
    first, second = suite.iter("failure")
    assert first.get("message") == "boxes:0: sqnr: sqnr is 12.5 dB, must be 20 dB"
    assert first.text is not None
    assert first.text.splitlines() == [
        "boxes:0: sqnr: sqnr is 12.5 dB, must be 20 dB",
        "value 12.5, limit 20.0",
        "to find the first divergent layer: trtopt compare model.onnx out --data eval.npz --layers",
    ]
    assert second.get("message") == "equal: equal could not be evaluated"


def test_junit_says_where_it_ran() -> None:
    found = {item.get("name"): item.get("value") for item in _suite(PASSED).iter("property")}
    assert found["fp32 ran in"] == "onnxruntime 1.31, CPU"
    assert found["candidate ran in"] == "onnxruntime 1.31, CPU, 16-bit rounding simulated"
    assert (found["data"], found["samples"], found["verdict"]) == ("eval.npz", "1000", "pass")
    assert found["summary"] == "PASS: 1/1 gates passed"


def test_junit_names_the_first_divergent_layer_in_the_failure() -> None:
    failure = next(_suite(JUMPED).iter("failure"))
    assert "first divergent layer: body; the noise that it adds is 89 % of its output" in (failure.text or "")


def test_junit_keeps_candidates_apart() -> None:
    names = [case.get("classname") for case in _suite(SEVERAL).findall("testcase")]
    assert names == [
        "trtopt.compare.out/fp16.logits",
        "trtopt.compare.out/int8.logits",
        "trtopt.compare.out/int8.boxes:0",
    ]


def test_an_inconclusive_gate_that_was_asked_for_is_a_failure_of_its_own_type() -> None:
    (case,) = _suite(INCONCLUSIVE).findall("testcase")
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("type") == "inconclusive"
    assert case.find("error") is None
    assert exit_code(INCONCLUSIVE) == 4
    (case,) = _suite(ALLOWED).findall("testcase")
    assert case.find("skipped") is not None
