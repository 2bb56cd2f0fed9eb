"""Tests of the report for a terminal: results, where they were measured, and untrusted names without effect."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from report.reports import ALL, COMPARED, FAILED, HUGE, INCONCLUSIVE, JUMPED, NO_ENGINE, PASSED, SEVERAL
from rich.console import Console

from trtopt.report import render, show
from trtopt.report.page import headline, words
from trtopt.report.text import renderable
from trtopt.types import Decision, Report

every_report = pytest.mark.parametrize("report", ALL.values(), ids=ALL.keys())


PAGE = """
convert model.onnx to int8

  prepare    0.50 s  29 nodes become 18
  calibrate  cached  entropy over 200 samples

engine

  file      out/model.engine  (2.50 MB)
  built by  tensorrt_rtx 1.7.1
  target    compute capability 8.9
  audit     10 fp16, 7 int8 layers, read back from the parsed network

kept in higher precision

  1  fp16  3 channels: fewer than 8
           first (Conv)
  1  fp32  its range leaves fp16
           norm (Softmax)

drift against FP32 on 1000 samples of eval.npz

  logits (scores)
    accuracy_fp32 97.40 %   accuracy 96.90 %   top1 99.00 %   sqnr identical

  boxes:0 (values)
    cosine 0.98   sqnr 12.50 dB

  FP32 ran in   onnxruntime 1.31, CPU
  candidate in  onnxruntime 1.31, CPU, 16-bit rounding simulated

gates

  pass  logits: top1   top-1 accuracy drops by 0.50 points (97.40 % -> 96.90 %), limit 1 (default
                       gate)
  FAIL  boxes:0: sqnr  sqnr is 12.5 dB, must be 20 dB
  FAIL  equal          equal could not be evaluated

warning: eval.npz: recipe imagenet assumed

to find the first divergent layer:
  trtopt compare model.onnx out --data eval.npz --layers
report: out/report.json
FAIL: boxes:0: sqnr; equal
"""


def at(width: int, report: Report) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(renderable(report))
    return stream.getvalue().splitlines()


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_text_shows_evidence_where_it_ran_and_the_verdict_last() -> None:
    assert render("text", FAILED) == PAGE


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
@every_report
def test_text_fits_any_width_and_cuts_nothing(report: Report, width: int) -> None:
    lines = at(width, report)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    verdict = squeezed(words.plain(headline.verdict(report)))
    assert squeezed("".join(lines)).endswith(verdict)


def test_a_long_node_name_does_not_squeeze_the_reason() -> None:
    assert PASSED.typed is not None
    reason = "a product of attention under a mask that is computed at run time"
    decision = Decision(node="/encoder/" * 30, op="MatMul", precision="fp16", reason=reason)
    lines = at(80, replace(PASSED, typed=replace(PASSED.typed, decisions=(decision,))))
    assert f"  1  fp16  {reason}" in [line.rstrip() for line in lines]


def test_many_nodes_of_one_reason_are_counted_and_the_first_are_named() -> None:
    assert PASSED.typed is not None
    nodes = tuple(Decision(node=f"n{i}", op="Conv", precision="fp16", reason="small") for i in range(7))
    text = render("text", replace(PASSED, typed=replace(PASSED.typed, decisions=nodes)))
    assert "  7  fp16  small\n           n0 (Conv), n1 (Conv), n2 (Conv), n3 (Conv), and 3 more\n" in text


def test_text_leaves_out_empty_sections() -> None:
    text = render("text", COMPARED)
    for part in ("audit", "engine", "built by", "kept in higher precision", "warning"):
        assert part not in text


def test_text_says_why_there_is_no_engine() -> None:
    assert "build  unavailable  no TensorRT here" in render("text", NO_ENGINE)


@every_report
def test_text_fits_in_100_columns_and_moves_no_cursor(report: Report) -> None:
    lines = render("text", report).split("\n")
    assert lines[-1] == ""
    assert max(map(len, lines[:-2])) <= 100  # the last line is the verdict
    assert all(line.isprintable() for line in lines)


def test_text_shows_names_as_they_are() -> None:
    text = render("text", replace(PASSED, model="[red]a[/x]:grin:.onnx"))
    assert "convert [red]a[/x]:grin:.onnx to int8" in text


def test_an_engine_that_was_not_audited_says_so() -> None:
    assert PASSED.engine is not None
    assert "not audited" in render("text", replace(PASSED, engine=replace(PASSED.engine, audit={})))


def test_text_groups_many_reasons() -> None:
    text = render("text", replace(HUGE, comparison=None, stages=(), warnings=()))
    assert "2992 more nodes with 2992 other reasons: trtopt inspect out --nodes" in text


def test_show_colours_the_verdict_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for force in ("", "1"):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("FORCE_COLOR", force)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        show("text", PASSED)
        shown.append(stream.getvalue())
    assert shown[0] == render("text", PASSED)
    assert "\x1b[1;32mPASS: 1/1 gates passed\x1b[0m\n" in shown[1]


def test_too_few_samples_are_inconclusive() -> None:
    assert "  inconclusive  logits: top1  top-1 differs from FP32" in render("text", INCONCLUSIVE)


@every_report
def test_the_verdict_is_the_last_line_however_long_it_is(report: Report) -> None:
    assert render("text", report).splitlines()[-1] == words.plain(headline.verdict(report))


def test_text_lists_the_worst_layers_and_samples() -> None:
    lines = [" ".join(line.split()) for line in render("text", JUMPED).splitlines()]
    assert "drift by layer, the worst of 3 layers, on 8 samples of eval.npz" in lines
    assert lines.index("body Conv int8 0.5 dB 41.5 dB 89 %") < lines.index("stem Conv int8 41.5 dB identical 0.007 %")
    assert "boxes:0 cat.png 3.2 dB another class than FP32" in lines


def test_text_puts_candidates_into_one_table() -> None:
    lines = [" ".join(line.split()) for line in render("text", SEVERAL).splitlines()]
    assert "candidate precision size accuracy agreement SQNR latency verdict" in lines
    assert "out/fp16 fp16 2.00 MB 96.90 % 99.00 % 12.5 dB 1.25 ms (batch 1) PASS, best" in lines
    assert "out/int8 int8 1.00 MB 96.90 % 99.00 % 12.5 dB FAIL" in lines
