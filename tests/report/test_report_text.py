"""The report for a terminal: evidence, where it ran, and nothing that a name could break."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report.reports import ALL, COMPARED, FAILED, HUGE, NO_ENGINE, PASSED

from trtopt.report import render
from trtopt.types import Report

every_report = pytest.mark.parametrize("report", ALL.values(), ids=ALL.keys())


def test_text_shows_verdict_evidence_and_where_it_ran() -> None:
    text = render("text", FAILED)
    for part in (
        "convert model.onnx to int8",
        "prepare     0.50 s   29 nodes become 18",
        "calibrate   cached   entropy over 200 samples",
        "out/model.engine  (2.50 MB)",
        "tensorrt_rtx 1.7.1",
        "compute capability 8.9",
        "10 fp16, 7 int8 layers, read back from the parsed network",
        "drift against FP32 on 1000 samples of eval.npz",
        "accuracy, FP32",
        "pass  logits: top1   top-1 accuracy drops by 0.50 points",
        "FAIL  boxes:0: sqnr  sqnr is 12.5 dB, must be 20 dB",
        "3 channels: fewer than 16",
        "its range leaves fp16",
        "warning: eval.npz: recipe imagenet assumed",
        "FAIL: boxes:0: sqnr; equal",
    ):
        assert part in text
    flat = " ".join(text.split())
    assert "FP32 ran in onnxruntime 1.31, CPU; the candidate in onnxruntime 1.31, CPU, 16-bit rounding" in flat


def test_text_leaves_out_what_there_is_none_of() -> None:
    text = render("text", COMPARED)
    for part in ("audit", "built by", "kept in higher precision", "warning"):
        assert part not in text


def test_text_says_why_there_is_no_engine() -> None:
    assert "unavailable   no TensorRT here" in render("text", NO_ENGINE)


@every_report
def test_text_fits_in_100_columns_and_moves_no_cursor(report: Report) -> None:
    lines = render("text", report).split("\n")
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)


def test_text_shows_names_as_they_are() -> None:
    text = render("text", replace(PASSED, model="[red]a[/x]:grin:.onnx"))
    assert "convert [red]a[/x]:grin:.onnx to int8" in text


def test_an_engine_that_was_not_audited_says_so() -> None:
    assert PASSED.engine is not None
    assert "not audited" in render("text", replace(PASSED, engine=replace(PASSED.engine, audit={})))


def test_text_groups_many_reasons() -> None:
    text = render("text", replace(HUGE, comparison=None, stages=(), warnings=()))
    assert "other reasons" in text
    assert "trtopt inspect --nodes" in text
