"""Validation of JUnit XML with the schema of the Jenkins xUnit plugin (`schemas/junit-10.xsd`, with its licence)."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.reports import ALL, HUGE
from report.rich import PARTS
from xmlschema import XMLSchema10

from trtopt.report import render
from trtopt.types import Report

SCHEMA = XMLSchema10(Path(__file__).parent / "schemas/junit-10.xsd")
REPORTS = {**ALL, **PARTS, "huge": HUGE}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_junit_validates(report: Report) -> None:
    SCHEMA.validate(render("junit", report))


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('tests="', 'test="'),
        ('time="', 'time="a while'),
        ("<testcase ", '<testcase surprise="1" '),
        ("<properties>", "<properties><odd/>"),
        ("testsuites", "suites"),
    ],
)
def test_the_schema_refuses_another_document(was: str, becomes: str) -> None:
    text = render("junit", PARTS["rich"])
    assert was in text
    assert not SCHEMA.is_valid(text.replace(was, becomes))
