"""`trtopt tune --speed engine` on a GPU: real engines, their layers timed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import CALIB, DIGITS, EVAL, Done

from trtopt.engine import Order, compiler
from trtopt.events import silent
from trtopt.graph.prepare import prepare
from trtopt.plan import BuildPlan
from trtopt.stages.build import FILE
from trtopt.stages.precision import typed_graph
from trtopt.stages.target import Target
from trtopt.store import open_store
from trtopt.types import ShapeRange

pytestmark = pytest.mark.gpu
Search = tuple[Done, dict[str, Any], float, Path]
SHAPE = "input=1x1x28x28:32x1x28x28:32x1x28x28"
PLAN = BuildPlan(tactic_sources="-CUDNN")
BUDGET = 480.0
"""Seconds that a search on the digits may take."""


def tuned(out: Path) -> tuple[Done, dict[str, Any]]:
    command = [
        sys.executable, "-m", "trtopt", "tune", DIGITS, "--speed", "engine", "--calib", CALIB, "--data", EVAL,
        "--shape", SHAPE, "--tactic-sources", "-CUDNN", "-o", out,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return Done(done.returncode, done.stdout, done.stderr), json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """Return a search on the digits: what it printed, its report, its seconds and its directory."""
    out, start = tmp_path_factory.mktemp("tuned"), time.monotonic()
    done, report = tuned(out)
    return done, report, time.monotonic() - start, out


def test_every_layer_of_an_engine_has_a_time(tmp_path: Path) -> None:
    tensorrt = compiler("tensorrt")
    assert tensorrt is not None
    model = prepare(Path(DIGITS), tmp_path, min_opset=19, profile=())
    target = Target(precision="fp16", rest="fp16", bias_correction=False)
    typed = typed_graph(tmp_path, model, target, None, None)
    shape = ShapeRange(name="input", min=(1, 1, 28, 28), opt=(32, 1, 28, 28), max=(32, 1, 28, 28))
    order = Order(typed=typed, profile=(shape,), plan=PLAN, device="cpu")
    engine = tensorrt.build(order, tmp_path / FILE, emit=lambda _: None)
    feed = {"input": np.zeros((32, 1, 28, 28), np.float32)}
    times = tensorrt.layer_times(engine, feed, 20)
    print(*((name, min(ms)) for name, ms in times.items()), sep="\n")
    assert {len(ms) for ms in times.values()} == {20}
    assert all(value >= 0 for ms in times.values() for value in ms)
    named = {layer.name for layer in engine.layers}
    assert sum(sum(ms) for name, ms in times.items() if name in named) > 0.9 * sum(map(sum, times.values()))


def test_the_search_ends_in_an_engine_that_is_right_and_not_slower_than_fp16(search: Search) -> None:
    done, report, seconds, _ = search
    assert done.code == 0, done.err
    assert seconds < BUDGET
    engine = [gate["verdict"] for gate in report["comparison"]["gates"] if gate["metric"] == "engine"]
    assert engine
    assert set(engine) == {"pass"}
    timings = [each for each in report["benchmark"]["timings"] if each["target"] == "INT8" and not each["copies"]]
    print("speedups over FP16", [(each["batch"], each["speedup"]) for each in timings])
    usual = next(each for each in timings if each["batch"] == 32)
    lowered = [each["node"] for each in report["typed"]["decisions"] if each["precision"] == "int8"]
    assert not lowered or usual["speedup"] > 0.98


def test_what_is_excluded_says_why(search: Search) -> None:
    _, report, _, _ = search
    reasons = {each["node"]: each["reason"] for each in report["typed"]["decisions"] if each["precision"] != "int8"}
    print(reasons)
    kept = [reason for reason in reasons.values() if reason.startswith(("INT8 is not faster", "the engine is wrong"))]
    groups = [group["quantized"] for group in report["tuning"]["groups"]]
    assert kept or all(groups)


def test_the_search_ends_alike_from_its_journal(search: Search) -> None:
    _, first, _, out = search
    with open_store(out, silent) as store:
        store.discard("tune")
    done, second = tuned(out)
    assert done.code == 0, done.err
    assert "evaluations of an earlier run are used" in done.err
    assert first["tuning"] == second["tuning"]
