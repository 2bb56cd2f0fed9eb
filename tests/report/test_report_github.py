"""Tests of the report as workflow commands: few, the worst first, and escaped as GitHub expects."""

from __future__ import annotations

from dataclasses import replace

from report.reports import (
    ALLOWED,
    BY_DEFAULT,
    COMPARED,
    FAILED,
    HOSTILE,
    INCONCLUSIVE,
    JUMPED,
    SQNR,
    TOP1,
    UNCHECKED,
    UNJUDGED,
)

from trtopt.report import render


def test_github_annotates_failed_gates_the_worst_first() -> None:
    assert render("github", FAILED).splitlines() == [
        "::error title=trtopt convert::FAIL: boxes:0: sqnr; equal",
        "::error title=trtopt equal::equal could not be evaluated",
        "::error title=trtopt boxes%3A0%3A sqnr::sqnr is 12.5 dB, must be 20 dB",
        "::warning title=trtopt::eval.npz: recipe imagenet assumed",
        "::notice title=trtopt%3A what to do next::to find the first divergent layer: trtopt compare model.onnx out "
        "--data eval.npz --layers",
    ]


def test_github_prints_one_notice_when_all_is_well() -> None:
    assert render("github", COMPARED) == "::notice title=trtopt compare::PASS: 1/1 gates passed\n"


def test_github_warns_of_an_unchecked_run() -> None:
    assert render("github", replace(UNCHECKED, warnings=())) == (
        "::warning title=trtopt convert::UNCHECKED: no comparison was requested\n"
    )


def test_github_keeps_to_ten_annotations_and_says_so() -> None:
    assert FAILED.comparison is not None
    gates = tuple(replace(SQNR, output=str(i), value=20.0 - i) for i in range(1, 14))
    lines = render("github", replace(FAILED, comparison=replace(FAILED.comparison, gates=gates))).splitlines()
    assert lines[0].startswith("::error title=trtopt convert::FAIL: ")
    assert [line.split("::")[1] for line in lines[1:10]] == [
        f"error title=trtopt {i}%3A sqnr" for i in range(13, 4, -1)
    ]
    assert lines[10] == "4 more gates did not pass: see report.json"


def test_github_escapes_what_would_start_another_command() -> None:
    for line in render("github", HOSTILE).splitlines():
        assert line.startswith(("::error title=trtopt", "::warning title=trtopt"))
        title = line.split("title=", 1)[1].split("::", 1)[0]
        assert ":" not in title
        assert "," not in title


def test_github_escapes_as_the_runner_unescapes() -> None:
    gate = replace(UNJUDGED, output="a:b,c", reason="50 %\r\nof it")
    assert FAILED.comparison is not None
    report = replace(FAILED, warnings=(), comparison=replace(FAILED.comparison, gates=(gate, TOP1)))
    assert render("github", report).splitlines()[1] == "::error title=trtopt a%3Ab%2Cc%3A equal::50 %25%0D%0Aof it"


def test_github_annotates_the_first_divergent_layer_after_the_verdict() -> None:
    verdict, layer = render("github", JUMPED).splitlines()[:2]
    assert verdict.startswith("::error title=trtopt convert::FAIL: ")
    assert layer == (
        "::error title=trtopt layer body::the noise that it adds is 89 %25 of its output, 41 dB above the median of "
        "int8 layers"
    )


def test_github_fails_what_is_inconclusive_and_asked_for_unless_it_is_allowed() -> None:
    first, second = render("github", INCONCLUSIVE).splitlines()[:2]
    assert first.startswith("::error title=trtopt convert::INCONCLUSIVE: logits: top1: ")
    assert second.startswith("::error title=trtopt logits%3A top1::top-1 differs from FP32 on")
    for report in (ALLOWED, BY_DEFAULT):
        lines = render("github", report).splitlines()
        assert lines[0].startswith("::warning title=trtopt convert::INCONCLUSIVE: logits: top1: ")
        assert not [line for line in lines if line.startswith("::error")]


def test_github_keeps_to_ten_warnings_with_that_of_the_verdict() -> None:
    lines = render("github", replace(UNCHECKED, warnings=tuple(map(str, range(20))))).splitlines()
    assert lines[0].startswith("::warning title=trtopt convert::UNCHECKED")
    assert len(lines) == 10
