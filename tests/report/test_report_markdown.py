"""Tests of the report as Markdown: tables that no name breaks, and a size below GitHub's limit."""

from __future__ import annotations

import re

from report.reports import FAILED, HOSTILE, HUGE, JUMPED, SEVERAL

from trtopt.report import render


def test_markdown_shows_verdict_evidence_and_where_it_ran() -> None:
    text = render("markdown", FAILED)
    assert text.startswith("## ❌ trtopt convert: FAIL: boxes:0: sqnr; equal\n")
    for part in (
        "`model.onnx` → **int8**",
        "| FAIL | boxes:0: sqnr | sqnr is 12.5 dB, must be 20 dB |",
        "| pass | logits: top1 | top-1 accuracy drops by 0.50 points (97.40 % -> 96.90 %), limit 1 (default) |",
        "| output | read as | accuracy\\_fp32 | accuracy | top1 | cosine | sqnr |",
        "| boxes:0 | values |  |  |  | 0.98 | 12.50 dB |",
        "1000 samples of `eval.npz`. FP32 ran in onnxruntime 1.31, CPU; the candidate in onnxruntime 1.31, CPU, 16-bit",
        "`out/model.engine` (2.50 MB), tensorrt\\_rtx 1.7.1, for compute capability 8.9; 10 fp16, 7 int8 layers, read",
        "| prepare | 0.50 s | 29 nodes become 18 |",
        "| 1 | fp16 | 3 channels: fewer than 8 | first (Conv) |",
        "- warning: eval.npz: recipe imagenet assumed",
    ):
        assert part in text


def test_markdown_lists_failed_gates_first() -> None:
    text = render("markdown", HUGE)
    assert text.index("| FAIL | boxes:0: sqnr |") < text.index("| pass |")


def test_markdown_of_a_huge_report_fits_a_github_summary_and_says_what_it_cut() -> None:
    text = render("markdown", HUGE)
    assert len(text.encode()) < 1 << 20
    for cut in ("… and 2940 more |", "… and 2940 more warnings"):
        assert cut in text


def test_markdown_cells_stay_cells() -> None:
    text = render("markdown", HOSTILE)
    assert "<i>" not in re.sub("`[^`]*`", "", text.replace("\\`", ""))  # code spans are literal text
    assert all(ord(character) >= 32 or character == "\n" for character in text)
    for row in (line for line in text.splitlines() if line.startswith("|")):
        bars = row.replace("\\\\", "").replace("\\|", "").count("|")
        assert bars in (4, 5, 7)  # tables of three, four and six columns


def test_markdown_shows_the_worst_layers_and_samples() -> None:
    text = render("markdown", JUMPED)
    assert "**First divergent layer: `body`.** the noise that it adds is 89 % of its output" in text
    assert "| body | Conv | int8 | 0.5 dB | 41.5 dB | 89 % |" in text
    assert "| boxes:0 | cat.png | 3.2 dB | another class than FP32 |" in text


def test_markdown_puts_candidates_into_one_table() -> None:
    text = render("markdown", SEVERAL)
    assert "| out/fp16 | fp16 | 2.00 MB | 96.90 % | 99.00 % | 12.5 dB | 1.25 ms (batch 1) | PASS, best |" in text
    assert "| out/int8 | int8 | 1.00 MB |" in text
