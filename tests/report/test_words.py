"""Tests of numbers and lists as text."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from report.reports import FAILED, JUMPED, LAYERS, PASSED, SEVERAL

from trtopt.report.page import words
from trtopt.types import NOT_WEIGHTED, Decision


def test_a_custom_metric_keeps_its_name() -> None:
    assert words.number("word_errors", 0.123456789) == "0.12346"


def test_gates_of_several_candidates_carry_their_names() -> None:
    assert [each.title for each in words.judged(SEVERAL)] == [
        "out/fp16: logits: top1",
        "out/int8: logits: top1",
        "out/int8: boxes:0: sqnr",
    ]


def test_the_worst_layers_come_first() -> None:
    assert [row[0] for row in words.layers(LAYERS, 2)] == ["body", "head"]
    assert words.layers(LAYERS, 1) == [("body", "Conv", "int8", "0.5 dB", "41.5 dB", "89 %")]


def test_as_many_of_the_worst_samples_are_listed_as_asked_for() -> None:
    assert words.worst_samples(JUMPED) == [
        ("boxes:0", "cat.png", "3.2 dB", "another class than FP32"),
        ("boxes:0", "dog.png", "8.0 dB", ""),
    ]
    assert words.worst_samples(FAILED) == []


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("top1", 99.0, "99.00 %"),
        ("sqnr", 32.555, "32.55 dB"),
        ("sqnr", math.inf, "identical"),
        ("sqnr", -math.inf, "no signal"),
        ("cosine", math.nan, "nan"),
        ("rmse", 0.00012345678, "0.00012346"),
    ],
)
def test_numbers_carry_their_unit(metric: str, value: float, text: str) -> None:
    assert words.number(metric, value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (78_540, "78.5 kB"), (345_600, "346 kB"), (1_200_000, "1.20 MB"),
     (4_000_000_000, "4.00 GB"), (12_000_000_000_000, "12000 GB")],
)  # fmt: skip
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert words.size(count) == text


def decision(node: str, precision: str, reason: str, op: str = "Conv") -> Decision:
    return Decision(node=node, op=op, precision=precision, reason=reason)


def test_decisions_are_grouped_by_precision_and_reason_the_largest_first() -> None:
    decisions = (
        decision("a", "fp32", "range"), decision("b", "int8", "x"), decision("c", "fp16", "small"),
        decision("d", "fp16", "range"), decision("e", "fp16", "range"), decision("f", "int8", "x"),
    )  # fmt: skip
    assert [(group.precision, group.reason, len(group.nodes)) for group in words.grouped(decisions)] == [
        ("fp16", "range", 2),
        ("fp16", "small", 1),
        ("int8", "x", 2),
        ("fp32", "range", 1),
    ]


@pytest.mark.parametrize(
    ("precision", "rest", "kept"),
    [
        ("int8", "fp16", ["conv16", "conv32", "add16", "relu32"]),
        ("int8", "fp32", ["conv16", "conv32", "add16"]),
        ("fp16", "fp16", ["conv32", "relu32"]),
        ("fp32", "fp32", []),
    ],
)
def test_only_nodes_that_could_be_lower_are_listed_as_kept_in_higher_precision(
    precision: str, rest: str, kept: list[str]
) -> None:
    decisions = (
        decision("conv8", "int8", ""), decision("conv16", "fp16", ""), decision("conv32", "fp32", ""),
        decision("add16", "fp16", "kept by tune", "Add"), decision("other", "fp16", NOT_WEIGHTED, "Add"),
        decision("relu16", "fp16", "", "Relu"), decision("relu32", "fp32", "", "Relu"),
    )  # fmt: skip
    assert PASSED.typed is not None
    typed = replace(PASSED.typed, precision=precision, rest=rest, decisions=decisions)
    assert [found.node for found in words.unquantized(replace(PASSED, precision=precision, typed=typed))] == kept


def test_ten_thousand_kept_nodes_are_listed_at_once() -> None:
    assert PASSED.typed is not None
    decisions = tuple(decision(str(i), "fp32", "range", "Relu") for i in range(10_000))
    report = replace(PASSED, typed=replace(PASSED.typed, decisions=decisions))
    start = time.process_time()
    assert len(words.unquantized(report)) == 10_000
    assert time.process_time() - start < 1.0  # searching all kept nodes for each node would take 5 s
