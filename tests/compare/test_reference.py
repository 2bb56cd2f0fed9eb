"""`--gate help`, the metrics of each kind, and proposals that can be pasted."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import DIGITS, EVAL, Done

from trtopt.compare.catalog import METRICS
from trtopt.compare.defaults import DEFAULTS
from trtopt.compare.gates import example, parse_gates
from trtopt.compare.kinds import kind, kinds
from trtopt.errors import UsageError

Cli = Callable[..., Done]
GATED = [name for name in METRICS if name != "nonfinite"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter an empty working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", [("compare",), ("convert", "m.onnx")], ids=lambda command: command[0])
def test_gate_help_prints_every_metric(command: tuple[str, ...], cli: Cli) -> None:
    done = cli(*command, "--gate", "help")
    assert done.code == 0, done.err
    head, *lines = done.out.splitlines()
    assert head.split()[0] == "metric"
    assert [line.split()[0] for line in lines] == GATED
    row = {line.split()[0]: line for line in lines}
    assert re.match(r"top1 +scores +largest drop, % +1 % +top1=1% +top-1 agreement", row["top1"])
    assert "all" in row["engine"]


def test_every_kind_names_the_metrics_of_its_default_gates() -> None:
    for name in kinds():
        assert {metric for metric, _ in DEFAULTS[name]} <= set(kind(name).METRICS) <= METRICS.keys()


@pytest.mark.parametrize("metric", GATED)
@pytest.mark.parametrize("limit", ["50%", "99.5%", "99", "-1", "150", "x", "0.5", "1000dB", ">=99%", "<=1"])
def test_a_proposed_gate_parses(metric: str, limit: str) -> None:
    gate = f"{metric}{limit if limit[0] in '<>' else '=' + limit}"
    try:
        parse_gates(gate)
    except UsageError as error:
        proposed = re.findall(rf"\b{metric}=[-\w.%]+", error.fix)
        assert proposed
        assert gate not in proposed
        for each in proposed:
            parse_gates(each)


@pytest.mark.parametrize("metric", GATED)
def test_an_example_parses(metric: str) -> None:
    (gate,) = parse_gates(example(metric))
    assert gate.metric == metric


def test_agreement_can_be_gated_where_there_are_labels(cli: Cli) -> None:
    run = ("compare", DIGITS, DIGITS, "--data", EVAL, "--format", "json", "--gate")
    report = json.loads(cli(*run, "top1_agreement=1%,top1=1%").out)
    reasons = {gate["metric"]: gate["reason"] for gate in report["comparison"]["gates"]}
    assert reasons["top1_agreement"].startswith("top-1 differs from FP32 on 0.00 % of samples")
    assert reasons["top1"].startswith("top-1 accuracy does not change")


def test_what_is_displayed_has_the_name_of_the_gate(cli: Cli) -> None:
    done = cli("compare", DIGITS, DIGITS, "--data", EVAL)
    table = done.out.partition("logits (scores)")[2].partition("FP32 ran in")[0]
    names = re.findall(r"(\w+) (?:[-\d.e]+|identical)(?: [%dB]+)?(?:\s|$)", table)
    assert {"accuracy_fp32", "accuracy", "top1_agreement", "cosine", "sqnr", "sqnr_min"} <= set(names)
    assert set(names) <= METRICS.keys()
    assert "top1 " not in table  # with labels, it is the drop of accuracy


def test_a_gate_of_another_kind_is_refused_before_anything_is_run_if_the_kind_is_given(cli: Cli) -> None:
    done = cli("compare", DIGITS, DIGITS, "--data", EVAL, "--kind", "logits=scores", "--gate", "miou=99%")
    assert (done.code, done.out) == (2, "")
    said = "error: --gate miou: logits is of kind scores: its metrics are accuracy_fp32, accuracy, top1, "
    assert done.err.startswith(said)
    assert not list(Path().iterdir())


def test_a_gate_of_another_kind_fails_with_the_kind_that_was_recognized(cli: Cli) -> None:
    done = cli("compare", DIGITS, DIGITS, "--data", EVAL, "--gate", "logits:miou=99%")
    assert done.code == 1
    assert "miou could not be evaluated: logits (scores) does not have this metric" in " ".join(done.out.split())


def test_the_next_step_is_a_command_that_can_be_pasted(cli: Cli) -> None:
    np.savez("few samples.npz", input=np.load(EVAL)["input"][:40])
    cli("convert", DIGITS, "--data", "few samples.npz", "--backend", "onnxruntime", "-o", "a", "-q")
    cli("convert", DIGITS, "-p", "bf16", "--data", "few samples.npz", "--backend", "onnxruntime", "-o", "b", "-q")
    done = cli("compare", DIGITS, "a", "b", "--data", "few samples.npz", "--gate", "sqnr=200", "-o", "c")
    assert done.code == 1
    (line,) = (line for line in " ".join(done.out.split()).split("report:") if "divergent layer: trtopt" in line)
    words = shlex.split(line.partition("divergent layer: trtopt ")[2])
    assert cli(*words, "-o", "d").code == 0  # without the gate that failed
