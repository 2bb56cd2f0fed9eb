"""Tests that every format renders every report, and never shows a pass that is not one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report.reports import ALL, EMPTY, PASSED

from trtopt.errors import UsageError
from trtopt.report import formats, render, show
from trtopt.types import Report, Spread

every_report = pytest.mark.parametrize("report", ALL.values(), ids=ALL.keys())


def test_a_format_is_a_module_of_the_folder() -> None:
    assert formats() == ("github", "html", "json", "junit", "markdown", "text")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown format 'pdf'\. Choose one of github, html, json"):
        render("pdf", PASSED)


@every_report
@pytest.mark.parametrize("format", ["github", "html", "json", "junit", "markdown", "text"])
def test_every_format_renders_every_report_and_ends_in_one_newline(format: str, report: Report) -> None:
    text = render(format, report)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("format", ["github", "html", "json", "junit", "markdown", "text"])
def test_a_report_with_values_that_no_run_writes_is_rendered(format: str) -> None:
    comparison = PASSED.comparison
    assert comparison is not None
    gates = (replace(comparison.gates[0], verdict="unchecked"),)
    spread = Spread(edges=(1.0,), counts=(3, 4))
    outputs = (replace(comparison.outputs[0], spread=spread),)
    odd = replace(PASSED, comparison=replace(comparison, gates=gates, outputs=outputs), precision="<b>*")
    assert ("<b>" in render(format, odd)) <= (format in ("json", "text", "github"))  # not markup in these formats


@pytest.mark.parametrize("format", ["github", "html", "json", "junit", "markdown", "text"])
def test_show_prints_the_report_once(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(format, PASSED)
    out = capsys.readouterr().out
    assert out == render(format, PASSED)


@pytest.mark.parametrize("format", ["github", "markdown", "text"])
def test_a_report_that_failed_with_nothing_judged_says_no_pass(format: str) -> None:
    text = render(format, EMPTY)
    assert "FAIL: no gate was evaluated" in text
    assert "PASS" not in text
