"""`trtopt bench --server`: what needs no server."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from support import Done

from trtopt.bench.gate import parse_gates
from trtopt.commands.load import LoadTest, report
from trtopt.report import render
from trtopt.serve import judge, load
from trtopt.types import Interval
from trtopt.verdict import exit_code


def result(rate: float, p99: float, **changes: object) -> load.RateResult:
    fields = {
        "rate": rate,
        "sent": 100,
        "answered": 100,
        "throughput": rate,
        "latency": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), p99),
        "bounds": {"p99": Interval(low=p99 - 1, high=p99 + 1)},
        "errors": {},
        "late": 0.1,
    }
    return load.RateResult(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_limit_breaks_between_two_rates() -> None:
    results = [result(100, 30), result(10, 5), result(50, 9)]
    assert load.breaks(results, 20) == (50, 100)
    assert load.breaks(results, 4) == (0, 10)
    assert load.breaks(results, 40) == (100, 0)


def test_a_rate_with_errors_breaks_every_limit() -> None:
    assert load.breaks([result(10, 5, errors={"refused": 1})], math.inf) == (0, 10)


@pytest.mark.parametrize(
    ("gate", "changes", "verdict"),
    [
        ("latency_p99=20ms", {}, "pass"),
        ("latency_p99=8ms", {}, "fail"),
        ("latency_p99=10ms", {}, "inconclusive"),
        ("latency_p99=20ms", {"errors": {"refused": 1}}, "fail"),
        ("latency_p99=20ms", {"late": 50.0}, "pass"),
        ("latency_p99=8ms", {"late": 50.0}, "inconclusive"),
        ("throughput=45", {}, "pass"),
        ("throughput=55", {}, "fail"),
    ],
)
def test_a_gate_is_judged_by_bounds_and_fails_on_errors(gate: str, changes: dict[str, object], verdict: str) -> None:
    (judged,) = judge.judged(parse_gates(gate), [result(50, 10, **changes)], "m")
    assert judged.verdict == verdict
    assert judge.verdict([judged]) == verdict


def load_test(*results: load.RateResult, gates: str) -> LoadTest:
    judged_ = judge.judged(parse_gates(gates), results, "m")
    return LoadTest(
        server="grpc://s:8001",
        model="m",
        results=results,
        mean_batch=2.0,
        latency_limit=20.0,
        holds=10.0,
        breaks=50.0,
        gates=judged_,
        verdict=judge.verdict(judged_),
        warnings=("50 requests/s: 1 x refused",),
    )


@pytest.mark.parametrize("format", ["markdown", "html", "junit", "github"])
def test_every_format_has_the_rates_and_the_gates(format: str) -> None:
    found = load_test(result(10, 5.0), result(50, 31.25), gates="latency_p99=20ms")
    text = render(format, report(found))
    assert "31.25 ms, must be at most 20 ms" in text
    if format in ("markdown", "html"):
        assert "answers/s" in text
    if format != "junit":
        assert "p99 within 20 ms up to 10 requests/s; broken at 50 requests/s" in text
        assert "50 requests/s: 1 x refused" in text


@pytest.mark.parametrize(
    ("gates", "allowed", "code"),
    [
        ("latency_p99=40ms", False, 0),
        ("latency_p99=20ms", False, 1),
        ("latency_p99=31ms", False, 4),
        ("latency_p99=31ms", True, 0),
        ("", False, 0),
    ],
)
def test_gates_decide_the_exit_code(gates: str, allowed: bool, code: int) -> None:
    found = load_test(result(50, 31.25), gates=gates)
    assert exit_code(report(found, allow_inconclusive=allowed)) == code


def test_junit_has_a_case_for_each_gate_at_each_rate() -> None:
    found = load_test(result(10, 5.0), result(50, 31.25), gates="latency_p99=20ms")
    suite = ElementTree.fromstring(render("junit", report(found)))[0]
    assert suite.attrib["failures"] == "1"
    cases = [(case.attrib["classname"], case.attrib["name"]) for case in suite.iter("testcase")]
    assert cases == [(f"trtopt.bench.m, {rate} requests/s", "latency_p99") for rate in (10, 50)]


@pytest.mark.parametrize("poisson", [False, True])
def test_requests_are_due_in_even_steps_or_at_random(poisson: bool) -> None:
    traffic = load.Traffic(model="m", feeds=[], seconds=10, timeout=1, poisson=poisson)
    steps = np.diff(load.due(1000, 100, traffic)) * 100
    assert steps.min() >= 0
    assert steps.mean() == pytest.approx(1, rel=0.02)
    # The time between two requests of a Poisson process is exponential: its standard deviation is its mean.
    assert steps.std() == pytest.approx(1 if poisson else 0, abs=0.1)


@pytest.mark.skipif(importlib.util.find_spec("tritonclient") is None, reason="tritonclient is not installed")
@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--server", "http://localhost:8000"), 2, "Write --server grpc://HOST:8001"),
        (("--server", "grpc://127.0.0.1:1"), 3, "no Triton server answers at grpc://127.0.0.1:1"),
        (("--server", "grpc://127.0.0.1:1", "--rate", "0"), 2, "invalid --rate 0"),
        (("--server", "grpc://127.0.0.1:1", "--rate", "fast"), 2, "invalid --rate fast"),
        (("--server", "grpc://127.0.0.1:1", "--batch", "4"), 2, "--batch has no effect"),
        (("a", "b", "--server", "grpc://127.0.0.1:1"), 2, "--server takes one model"),
        (("a", "--rate", "10"), 2, "--rate has no effect"),
        (("a", "--poisson"), 2, "--poisson has no effect"),
        ((), 2, "nothing to measure"),
    ],
)
def test_a_wrong_flag_or_server_gets_one_line(
    cli: Callable[..., Done], arguments: tuple[str, ...], code: int, line: str
) -> None:
    done = cli("bench", *arguments)
    assert done.code == code
    assert line in done.err
