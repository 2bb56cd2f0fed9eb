"""Tests of the result of `inspect` for a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from report.reports import ENGINE, MODEL, NASTY, TYPED
from rich.console import Console

from trtopt.inspection import Inspection
from trtopt.report.page.inspection import renderable
from trtopt.types import Decision


def shown(found: Inspection, *, nodes: bool) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, highlight=False, emoji=False).print(renderable(found, nodes=nodes))
    return stream.getvalue()


def inspection(*decisions: Decision, op: str = "Conv") -> Inspection:
    return Inspection(
        path=Path("out"),
        onnx=MODEL,
        operators={op: 3},
        parameters=1234,
        weights={"int8": 2_000_000},
        decided="typed",
        decisions=decisions,
        engine=ENGINE,
    )


def test_facts_and_decisions_are_shown() -> None:
    text = shown(inspection(*TYPED.decisions), nodes=False)
    for part in (
        "out/typed.onnx",
        "3: 3 Conv",
        "1,234 (2.00 MB int8)",
        "x  float32 [n, 3, 8, 8]",
        "out/model.engine (2.50 MB)",
    ):
        assert part in text
    assert "1 fp16 3 channels: fewer than 8 first (Conv)" in " ".join(text.split())


def test_every_node_is_listed_on_request() -> None:
    text = shown(inspection(*TYPED.decisions), nodes=True)
    lines = [line.strip() for line in text.splitlines()]
    for decision in TYPED.decisions:
        assert f"{decision.precision}  {decision.node} ({decision.op}): {decision.reason}" in lines


def test_names_from_a_hostile_model_are_only_text() -> None:
    decision = Decision(node=NASTY, op=NASTY, precision="fp16", reason=NASTY)
    for nodes in (False, True):
        text = shown(inspection(decision, op=NASTY), nodes=nodes)
        assert "\x1b" not in text
        assert "a[/b]|`<i>&*_:grin:" in text
