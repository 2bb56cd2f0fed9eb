"""An engine beside its own graph: the gate `engine`."""

import math

import numpy as np
import pytest

from trtopt.compare.gates import parse_gates
from trtopt.compare.pair import Pair
from trtopt.compare.run import Measure, compare
from trtopt.compare.witness import _judged, judged
from trtopt.data.dataset import Dataset
from trtopt.events import silent
from trtopt.types import EngineDrift
from trtopt.verdict import wrong

N = 64
RNG = np.random.default_rng(0)
FP32 = RNG.normal(size=(N, 10)).astype(np.float32)


def noisy(sqnr, base=FP32, seed=1):
    """Return `base` with noise of this SQNR in dB."""
    noise = np.random.default_rng(seed).normal(size=base.shape)
    noise *= np.sqrt((base**2).sum() / (noise**2).sum() / 10 ** (sqnr / 10))
    return (base + noise).astype(np.float32)


class Table:
    """Runner that looks the outputs of a sample up."""

    where = "numpy"

    def __init__(self, values):
        self.values = values

    def run(self, feed):
        return {"y": self.values[feed["i"].reshape(-1)]}


def verdict(engine, graph, precision="int8", gates=""):
    dataset = Dataset(
        source="e",
        digest="d",
        ids=tuple(map(str, range(N))),
        load=lambda i: {"i": np.array([[i]])},
        batched=True,
    )
    pair = Pair(baseline=Table(FP32), candidate=Table(engine), graph=Table(graph), names=("a", "b"))
    comparison = compare(pair, dataset, Measure(kinds={"y": "values"}), emit=silent)
    return judged(comparison, parse_gates(gates or "cosine=0"), precision)


def result(comparison):
    return next(gate for gate in comparison.gates if gate.metric == "engine")


@pytest.mark.parametrize(
    ("precision", "graph", "engine", "expected"),
    [
        ("int8", 30, 29.5, "pass"),
        ("int8", 30, 28.5, "fail"),
        ("int8", 30, 45, "pass"),
        ("int8", 36.9, 2.8, "fail"),
        ("int8", 70, 51, "pass"),
        ("int8", 70, 49, "fail"),
        ("fp16", 49, 46.5, "pass"),
        ("fp16", 49, 45.5, "fail"),
        ("fp16", 70, 51, "pass"),
        ("fp16", 70, 49, "fail"),
        ("fp32", 110, 81, "pass"),
        ("fp32", 110, 79, "fail"),
        ("fp32", 69.0, 68.95, "pass"),
        ("", 30, 28.5, "fail"),
    ],
)
def test_an_engine_farther_from_fp32_than_its_graph_fails(precision, graph, engine, expected):
    comparison = verdict(noisy(engine), noisy(graph, seed=2), precision)
    assert result(comparison).verdict == expected
    assert comparison.verdict == expected  # also when all gates of the user pass


def test_the_drift_of_the_engine_the_graph_and_between_them_is_reported():
    graph = noisy(30)
    drift = verdict(noisy(40, base=graph, seed=3), graph).engine[0]
    assert (drift.output, drift.metric) == ("y", "sqnr")
    assert drift.graph == pytest.approx(30, abs=0.1)
    assert drift.between == pytest.approx(40, abs=0.1)
    assert drift.engine == pytest.approx(29.6, abs=0.5)


def test_a_gate_of_the_user_replaces_the_default():
    comparison = verdict(noisy(25), noisy(30, seed=2), gates="engine=6dB")
    assert [(gate.metric, gate.verdict, gate.default) for gate in comparison.gates if gate.metric == "engine"] == [
        ("engine", "pass", False)
    ]


def test_a_gate_on_an_engine_that_was_not_run_fails_for_that_reason():
    dataset = Dataset(
        source="e", digest="d", ids=tuple(map(str, range(N))), load=lambda i: {"i": np.array([[i]])}, batched=True
    )
    pair = Pair(baseline=Table(FP32), candidate=Table(noisy(30)), names=("a", "b"))
    comparison = judged(
        compare(pair, dataset, Measure(kinds={"y": "values"}), emit=silent), parse_gates("engine=2dB"), "int8"
    )
    assert (result(comparison).verdict, wrong(comparison)) == ("fail", False)
    assert "no engine was run" in result(comparison).reason


def test_identical_outputs_pass():
    drift = verdict(FP32, FP32)
    assert math.isinf(drift.engine[0].engine)
    assert result(drift).verdict == "pass"


@pytest.mark.parametrize(
    ("engine", "graph"), [(math.nan, 30.0), (30.0, math.nan), (-math.inf, -math.inf), (-math.inf, 30.0)]
)
def test_outputs_that_cannot_be_compared_fail(engine, graph):
    drift = EngineDrift(output="y", metric="sqnr", engine=engine, graph=graph, between=0.0)
    assert _judged(drift, "int8").verdict == "fail"


def test_a_gate_on_the_engine_keeps_the_gates_on_drift():
    comparison = verdict(noisy(3), noisy(3, seed=2), gates="engine=30dB")
    assert {"cosine", "sqnr_min"} <= {gate.metric for gate in comparison.gates}
    assert comparison.verdict == "fail"


def test_nan_in_the_engine_fails():
    broken = FP32.copy()
    broken[3] = np.nan
    comparison = verdict(broken, noisy(30))
    assert comparison.verdict == "fail"


@pytest.mark.parametrize(("wrong", "expected"), [(0, "pass"), (30, "fail")])
def test_integers_are_compared_by_the_share_of_equal_elements(wrong, expected):
    codes = np.arange(N * 10).reshape(N, 10)
    engine = codes.copy()
    engine.reshape(-1)[:wrong] += 1
    dataset = Dataset(
        source="e", digest="d", ids=tuple(map(str, range(N))), load=lambda i: {"i": np.array([[i]])}, batched=True
    )
    pair = Pair(baseline=Table(codes), candidate=Table(engine), graph=Table(codes), names=("a", "b"))
    comparison = judged(compare(pair, dataset, Measure(), emit=silent), parse_gates("equal=0"), "int8")
    assert result(comparison).verdict == expected
