"""The guard: nodes that ruin the output in INT8 stay in higher precision, and nothing else does."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine.toy import Toy, install
from onnx import numpy_helper
from support import Done

from trtopt import convert
from trtopt.errors import ModelError

CLI = Callable[..., Done]
WIDTH = 32


@pytest.fixture(scope="module")
def loud_and_quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose first product reads samples of very different loudness, which are alike after it.

    One scale cannot serve both: the quiet samples are rounded away.
    """
    folder = tmp_path_factory.mktemp("guard")
    rng = np.random.default_rng(7)
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 19]> g (float[n, 8, {WIDTH}] x) => (float[n, 8, {WIDTH}] y) {{
        a = MatMul(x, w0)
        b = LayerNormalization <axis = -1, epsilon = 1e-12> (a, one)
        c = MatMul(b, w1)
        d = Relu(c)
        y = MatMul(d, w2)
    }}"""
    )
    weights = {f"w{i}": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for i in range(3)}
    weights["one"] = np.ones(WIDTH, np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node, name in zip(model.graph.node, ("first", "norm", "second", "relu", "third"), strict=True):
        node.name = name
    onnx.save(model, folder / "model.onnx")
    for name, count in (("calib", 96), ("eval", 400)):
        loudness = np.where(rng.random((count, 1, 1)) < 0.5, 1.0, 0.004)
        np.savez(folder / f"{name}.npz", x=(rng.normal(0, 1, (count, 8, WIDTH)) * loudness).astype(np.float32))
    return folder


def precisions(run: Path) -> dict[str, tuple[str, str]]:
    report = json.loads((run / "report.json").read_text())
    return {each["node"]: (each["precision"], each["reason"]) for each in report["typed"]["decisions"]}


def test_a_node_that_ruins_some_samples_is_kept_and_the_gates_pass_on_others(loud_and_quiet: Path, cli: CLI) -> None:
    run = loud_and_quiet / "guarded"
    done = cli(
        "convert", str(loud_and_quiet / "model.onnx"), "-p", "int8", "--backend", "onnxruntime", "-o", str(run),
        "--calib", str(loud_and_quiet / "calib.npz"), "--data", str(loud_and_quiet / "eval.npz"),
    )  # fmt: skip
    assert done.code == 0, done.out
    found = precisions(run)
    assert {name for name, (precision, _) in found.items() if precision == "int8"} == {"second", "third"}
    assert found["first"][0] == "fp16"
    assert "kept by the guard" in found["first"][1]
    assert "cosine is 0." in found["first"][1]
    assert "1 node stays in fp16" in done.out


@pytest.mark.parametrize("batch", [3, 8, 32])
def test_a_fixed_batch_is_guarded_by_the_same_samples_with_the_same_result(
    batch: int, loud_and_quiet: Path, cli: CLI
) -> None:
    found = []
    for size in ("1:8:32", str(batch)):
        run = loud_and_quiet / f"batch-{size.replace(':', '-')}"
        shape = ":".join(f"{each}x8x{WIDTH}" for each in size.split(":"))
        done = cli(
            "convert", str(loud_and_quiet / "model.onnx"), "-p", "int8", "--backend", "onnxruntime", "-o", str(run),
            "--calib", str(loud_and_quiet / "calib.npz"), "--shape", f"x={shape}", "--no-compare",
        )  # fmt: skip
        assert done.code == 0, done.err
        found.append(precisions(run))
    assert "on 8 calibration samples" in found[0]["first"][1]
    assert found[0] == found[1]


def test_what_the_kept_nodes_may_cost_is_said_where_no_engine_is_timed(loud_and_quiet: Path, cli: CLI) -> None:
    given = (
        "convert", str(loud_and_quiet / "model.onnx"), "-p", "int8", "--no-compare", "--target", "jetpack-6",
        "--calib", str(loud_and_quiet / "calib.npz"),
    )  # fmt: skip
    said = (
        "note: not timed: the copies around the node that the guard keeps in fp16 can make the engine slower than FP16"
    )
    assert said in " ".join(cli(*given, "-o", str(loud_and_quiet / "guarded")).out.split())
    assert "not timed" not in cli(*given, "--no-guard", "-o", str(loud_and_quiet / "not guarded")).out


def test_without_the_guard_the_same_network_fails(loud_and_quiet: Path, cli: CLI) -> None:
    run = loud_and_quiet / "plain"
    done = cli(
        "convert", str(loud_and_quiet / "model.onnx"), "-p", "int8", "--backend", "onnxruntime", "-o", str(run),
        "--calib", str(loud_and_quiet / "calib.npz"), "--data", str(loud_and_quiet / "eval.npz"), "--no-guard",
    )  # fmt: skip
    assert done.code == 1
    assert precisions(run)["first"][0] == "int8"


def test_a_network_that_holds_keeps_nothing(loud_and_quiet: Path) -> None:
    loud = loud_and_quiet / "loud.npz"
    rng = np.random.default_rng(1)
    np.savez(loud, x=rng.normal(0, 1, (64, 8, WIDTH)).astype(np.float32))
    report = convert(
        loud_and_quiet / "model.onnx", precision="int8", backend="onnxruntime", out=loud_and_quiet / "loud", calib=loud
    )
    assert report.typed is not None
    assert report.typed.counts()["int8"] == 3


def test_a_network_that_cannot_be_tried_is_not_said_to_hold(
    loud_and_quiet: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("the network does not run")

    monkeypatch.setattr("trtopt.stages.mixed.Trials.judged", fail)
    done = cli(
        "convert", str(loud_and_quiet / "model.onnx"), "-p", "int8", "--backend", "onnxruntime",
        "-o", str(loud_and_quiet / "untried"), "--calib", str(loud_and_quiet / "calib.npz"),
    )  # fmt: skip
    assert "not judged: the quantized network could not be tried" in done.out
    assert "the network does not run" in done.err
    assert "expected to hold" not in done.out


@pytest.fixture(scope="module")
def near_ties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose classes come in pairs that are nearly alike: INT8 takes one for the other in a few samples."""
    folder = tmp_path_factory.mktemp("ties")
    rng = np.random.default_rng(3)
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 19]> g (float[n, {WIDTH}] x) => (float[n, {WIDTH}] logits) {{
        a = MatMul(x, w0)
        b = Relu(a)
        logits = MatMul(b, w1)
    }}"""
    )
    half = rng.normal(0, 1, (WIDTH, WIDTH // 2))
    pairs = np.repeat(half, 2, axis=1) + rng.normal(0, 0.01, (WIDTH, WIDTH))
    weights = {"w0": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)), "w1": pairs}
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    onnx.save(model, folder / "model.onnx")
    samples = {name: rng.normal(0, 1, (200, WIDTH)).astype(np.float32) for name in ("calib", "eval")}
    np.savez(folder / "calib.npz", x=samples["calib"])
    np.savez(folder / "eval.npz", x=samples["eval"])
    np.savez(folder / "labelled.npz", x=samples["eval"], labels=rng.integers(0, WIDTH, 200))
    return folder


@pytest.mark.parametrize(("data", "kept"), [("eval.npz", True), ("labelled.npz", False)])
def test_changed_classes_count_only_if_the_samples_have_no_labels(
    data: str, kept: bool, near_ties: Path, cli: CLI
) -> None:
    run = near_ties / data.partition(".")[0]
    done = cli(
        "convert", str(near_ties / "model.onnx"), "-p", "int8", "--backend", "onnxruntime", "-o", str(run),
        "--calib", str(near_ties / "calib.npz"), "--data", str(near_ties / data), "--no-equalization",
    )  # fmt: skip
    assert done.code != 2, done.err
    reasons = [reason for _, reason in precisions(run).values()]
    assert any("kept by the guard" in reason and "top-1 differs" in reason for reason in reasons) == kept
    assert any(precision == "int8" for precision, _ in precisions(run).values())


def test_an_engine_that_the_guard_makes_slow_is_told(
    near_ties: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("trtopt.stages.speed"), "SECONDS", 0.01)
    install(monkeypatch, Toy(ms={"fp32": 3.0, "fp16": 2.0, "int8": 2.5}))
    run = near_ties / "slow"
    done = cli(
        "convert", str(near_ties / "model.onnx"), "-p", "int8", "-o", str(run), "--no-equalization",
        "--calib", str(near_ties / "calib.npz"), "--data", str(near_ties / "eval.npz"),
    )  # fmt: skip
    kept = sum("kept by the guard" in reason for _, reason in precisions(run).values())
    nodes = "the node that the guard keeps costs" if kept == 1 else f"the {kept} nodes that the guard keeps cost"
    assert f"Use --precision fp16, or --no-guard: {nodes} reformats" in done.err.replace("\n", " ")
