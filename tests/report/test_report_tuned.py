"""The search and the sensitivity of groups in a report: sentences, table, chart, JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import pytest
from report.reports import PASSED
from support import ROOT

from trtopt.codec import decode
from trtopt.report import formats, render
from trtopt.report.page import tuned
from trtopt.types import Choice, GateResult, Report, SensitiveGroup, Sensitivity, TunedGroup, Tuning

HOSTILE = "</svg><script>[red]\x1b[31m"


def choice(half: str, cost: float, drift: float, **more: object) -> Choice:
    plain = {"samples": 80, "quantized": 3, "share": 0.5, "acceptable": True, "reason": ""}
    return Choice(half=half, cost=cost, drift=drift, **{**plain, **more})  # type: ignore[arg-type]


TUNING = Tuning(
    speed="macs",
    groups=tuple(
        TunedGroup(name=name, nodes=(name, "b"), quantized=on, share=0.25, error=error, reason=f"because of {name}")
        for name, on, error in (("conv", True, 1e-4), (HOSTILE, False, 0.3), ("untried", True, math.nan))
    ),
    choices=(
        choice("search", 0.5, 9.0, acceptable=False, reason="y: cosine is 0.9"),
        choice("search", 0.8, -math.inf, acceptable=False, reason="it cannot be run"),
        choice("verdict", 1.0, 60.0),
        choice("verdict", 0.7, 22.0, chosen=True),
    ),
    share=0.5,
    cost=0.7,
    searched=80,
    judged=81,
    passes=1234,
)
SENSITIVITY = Sensitivity(
    groups=(
        SensitiveGroup(
            name=HOSTILE, nodes=(HOSTILE, "b"), share=0.2, alone=0.01, others=0.002, exact=True, low=0.005, high=0.02,
            parts={"all": 0.01, "weight": 0.004, "clipped": 0.0, "rounded": 0.005, "bias": -0.01},
        ),
        SensitiveGroup(name="conv", nodes=("conv",), share=0.8, alone=0.0, others=math.inf, exact=False),
    ),
    whole=0.012, samples=16, few=2,
)  # fmt: skip
REPORT = replace(PASSED, command="tune", precision="int8", tuning=TUNING, sensitivity=SENSITIVITY)


@pytest.mark.parametrize("format", formats())
def test_every_format_shows_it_without_markup_of_names(format: str) -> None:
    text = render(format, REPORT)
    assert format in ("text", "json") or "</svg><script>" not in text
    assert "\x1b" not in text


def test_json_fits_the_schema_and_reads_back() -> None:
    data = json.loads(render("json", REPORT))
    schema = json.loads((ROOT / "docs/report.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(data)
    assert repr(decode(Report, data)) == repr(REPORT)


def test_the_chart_marks_the_chosen_point_and_leaves_out_what_was_not_run() -> None:
    chart = tuned.pareto(TUNING)
    assert chart.count("<circle") == 2  # both that are acceptable
    assert "★ chosen: 50.0 % of the multiplications quantized" in chart
    assert not tuned.pareto(replace(TUNING, choices=TUNING.choices[:1]))


def test_the_sentences_name_what_cannot_be_quantized_and_how_the_verdict_was_reached() -> None:
    lines = tuned.said(TUNING, "int8")
    assert lines[0].startswith("2 of 3 groups are in int8: 50.0 % of the multiplications")
    assert lines[1].startswith("this one cannot be int8: ")
    assert "2 choices were tried on 80 samples, and 2 were judged on the other 81" in lines[2]
    assert "their number needs no correction" in lines[3]


def test_a_network_that_fails_without_quantization_is_said_to() -> None:
    failed = GateResult(output="y", metric="sqnr", value=50.0, limit=60.0, verdict="fail", reason="sqnr is 50 dB")
    lines = tuned.said(replace(TUNING, failed=failed, stopped="it was interrupted"), "int8")
    assert lines[1].startswith("no choice can pass: with nothing quantized, y: sqnr: sqnr is 50 dB. Loosen the gate")
    assert "it was interrupted" in lines[2]


def test_estimates_are_marked_and_only_measured_groups_have_an_interval() -> None:
    (_, alone, interval, others, weight, clipped, _, bias), (_, *estimate) = tuned.sensitivity_rows(SENSITIVITY)
    assert (alone, interval, others, weight, clipped) == ("20.0", "17.0 to 23.0", "27.0", "24.0", "none")
    assert bias == "+3.0"
    assert estimate[:2] == ["~none", ""]


def test_the_bars_are_those_of_the_worst_groups() -> None:
    assert tuned.bars(SENSITIVITY).count('class="bar"') == 1
    assert not tuned.bars(replace(SENSITIVITY, groups=()))
