"""`trtopt tune`: what it chooses, that it stops and resumes, and what it refuses."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import Done

from trtopt import api
from trtopt.stages.mixed import Trials
from trtopt.types import Report

CLI = Callable[..., Done]
WIDTH, LAYERS = 32, 5


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of products, whose first and third read samples of very different loudness.

    One scale cannot serve both: the quiet samples are rounded away.
    """
    folder = tmp_path_factory.mktemp("tune")
    rng = np.random.default_rng(7)
    body, weights, value = [], {}, "x"
    for layer in range(LAYERS):
        weights[f"w{layer}"] = rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
        body.append(f"p{layer} = MatMul({value}, w{layer})")
        value = f"p{layer}"
        if layer in (0, 2):
            body.append(f"n{layer} = LayerNormalization <axis = -1, epsilon = 1e-12> ({value}, one)")
            value = f"n{layer}"
        if layer == 1:
            body.append(f"m{layer} = Mul({value}, loudness)")
            value = f"m{layer}"
        if layer == LAYERS - 1:
            body.append(f"y = Identity({value})")
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 19]>
        g (float[n, 8, {WIDTH}] x, float[n, 1, 1] loudness) => (float[n, 8, {WIDTH}] y) {{ {chr(10).join(body)} }}"""
    )
    weights["one"] = np.ones(WIDTH, np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, folder / "model.onnx")
    for name, count in (("calib", 64), ("eval", 160)):
        loudness = np.where(rng.random((count, 1, 1)) < 0.5, 1.0, 0.004).astype(np.float32)
        values = (rng.normal(0, 1, (count, 8, WIDTH)) * loudness).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=values, loudness=loudness)
    return folder


def tuned(network: Path, out: Path, **options: object) -> Report:
    return api.tune(
        network / "model.onnx", calib=str(network / "calib.npz"), data=str(network / "eval.npz"),
        backend="onnxruntime", method="minmax", equalization=False, out=out, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def arguments(network: Path, out: Path) -> list[str]:
    return [
        "tune", str(network / "model.onnx"), "--calib", str(network / "calib.npz"), "--data",
        str(network / "eval.npz"), "--backend", "onnxruntime", "--method", "minmax", "--no-equalization",
        "-o", str(out),
    ]  # fmt: skip


def quantized(report: Report) -> dict[str, bool]:
    assert report.tuning is not None
    return {group.name: group.quantized for group in report.tuning.groups}


@pytest.fixture(scope="module")
def whole(network: Path) -> Report:
    """The result of an undisturbed run."""
    return tuned(network, network / "whole")


def test_what_ruins_samples_is_kept_and_the_rest_is_quantized(whole: Report) -> None:
    assert whole.verdict == "pass"
    assert quantized(whole) == {"p0": False, "p1": True, "p2": False, "p3": True, "p4": True}
    assert whole.typed is not None
    reasons = {each.node: each.reason for each in whole.typed.decisions if each.node in ("p0", "p2")}
    assert all(reason.startswith("kept by tune: with it quantized, y: ") for reason in reasons.values())


def test_the_verdict_rests_on_samples_that_the_search_did_not_see(whole: Report) -> None:
    assert whole.comparison is not None
    assert whole.tuning is not None
    assert (whole.comparison.samples, whole.tuning.searched, whole.tuning.judged) == (80, 80, 80)
    chosen = [each for each in whole.tuning.choices if each.chosen]
    assert [(each.half, each.acceptable, each.quantized) for each in chosen] == [("verdict", True, 3)]


def test_the_report_shows_each_choice_and_each_decision(whole: Report) -> None:
    page = (whole.run_dir / "report.html").read_text()
    assert "★ chosen" in page
    assert page.count("with it quantized") >= 2
    assert "these 2 cannot be int8: p0, p2" in page


def test_where_everything_quantized_passes_nothing_is_searched(network: Path, tmp_path: Path) -> None:
    report = tuned(network, tmp_path, keep=["p0", "p2"])
    assert report.tuning is not None
    assert all(quantized(report).values())
    assert [(each.half, each.samples) for each in report.tuning.choices] == [("verdict", 80)]
    assert (report.tuning.passes, report.tuning.judging) == (0, 80)
    assert (
        "with everything quantized, the verdict on 80 samples needs no search" in (tmp_path / "report.html").read_text()
    )


def test_no_sample_is_run_twice_by_a_choice_that_is_judged_on_more_of_them(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[bytes] = Counter()
    quantized, judged = Trials.quantized, Trials.judged

    class Counted:
        callers = 1
        where = ""

        def __init__(self, runner: Any) -> None:
            self.runner = runner

        def run(self, feed: dict[str, np.ndarray]) -> Any:
            runs[bytes([opened.index(self)]) + feed["x"].tobytes()] += 1
            return self.runner.run(feed)

    opened: list[Counted] = []

    def counted(*args: Any, **options: Any) -> Any:
        opened.append(Counted(quantized(*args, **options)))
        return opened[-1]

    def only_judged(*args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Trials, "quantized", counted)
            return judged(*args, **options)

    monkeypatch.setattr(Trials, "judged", only_judged)
    report = tuned(network, tmp_path)
    assert report.tuning is not None
    assert len(opened) > 5
    assert set(runs.values()) == {1}


def test_a_second_run_evaluates_nothing(network: Path, whole: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Trials, "judged")
    assert quantized(tuned(network, whole.run_dir)) == quantized(whole)
    assert quantized(tuned(network, whole.run_dir, budget="99candidates")) == quantized(whole)  # from the journal


def test_a_budget_ends_the_search_with_the_best_so_far(network: Path, tmp_path: Path) -> None:
    report = tuned(network, tmp_path / "run", budget="2candidates")
    assert report.tuning is not None
    assert report.tuning.stopped == "the budget of 2 candidates is spent"
    assert sum(each.half == "search" for each in report.tuning.choices) == 2
    assert report.verdict == "pass"


def test_an_interrupted_search_keeps_the_best_so_far_and_goes_on_in_the_next_run(
    network: Path, whole: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, calls = Trials.judged, []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return judged(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Trials, "judged", interrupted)
    report = tuned(network, tmp_path / "run")
    assert report.tuning is not None
    assert report.tuning.stopped == "it was interrupted"
    assert report.verdict == "pass"
    assert any("interrupted: the best choice so far" in note for note in report.notes)
    assert quantized(tuned(network, tmp_path / "run")) == quantized(whole)


def killed(network: Path, out: Path, whole: Report, times: int) -> None:
    """Kill runs at random moments of the search; the last one must end as an undisturbed one."""
    rng = random.Random(3)
    command = [sys.executable, "-m", "trtopt", *arguments(network, out)]
    journal = out / "tune.jsonl"
    for _ in range(times):
        before = len(journal.read_bytes().splitlines()) if journal.exists() else 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                if journal.exists() and len(journal.read_bytes().splitlines()) > before:
                    break
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
    lines = journal.read_text().splitlines()
    report = tuned(network, out)
    assert quantized(report) == quantized(whole)
    assert report.tuning is not None
    assert whole.tuning is not None
    assert report.tuning.choices == whole.tuning.choices
    assert journal.read_text().splitlines()[: len(lines) - 1] == lines[:-1]  # nothing was evaluated twice


def test_a_run_that_is_killed_resumes_and_ends_with_the_same_choice(
    network: Path, whole: Report, tmp_path: Path
) -> None:
    killed(network, tmp_path, whole, times=2)


@pytest.mark.nightly
def test_a_run_that_is_killed_ten_times_ends_with_the_same_choice(network: Path, whole: Report, tmp_path: Path) -> None:
    killed(network, tmp_path, whole, times=10)


def test_where_even_nothing_quantized_fails_it_says_so(network: Path, cli: CLI, tmp_path: Path) -> None:
    done = cli(*arguments(network, tmp_path), "--gate", "sqnr=200dB")
    assert done.code == 1, done.err
    assert "no choice can pass: with nothing quantized, y: sqnr: sqnr is" in " ".join(done.out.split())
    assert "(no choice can pass: y: sqnr fails even with nothing in int8" in done.out.splitlines()[-1]
    report = json.loads((tmp_path / "report.json").read_text())
    assert not any(group["quantized"] for group in report["tuning"]["groups"])


@pytest.mark.parametrize(
    ("flags", "code", "why"),
    [
        (("--speed", "engine"), 3, "--speed engine is not possible"),
        (("--speed", "flops"), 2, "--speed flops is unknown"),
        (("--budget", "soon"), 2, "--budget 'soon' is not"),
        (("-p", "fp16"), 2, "leaves nothing to choose"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_at_once(
    network: Path, cli: CLI, tmp_path: Path, flags: tuple[str, ...], code: int, why: str
) -> None:
    done = cli(*arguments(network, tmp_path / "run"), *flags)
    assert done.code == code, done.err
    assert why in done.err
    assert not (tmp_path / "run").exists()


def test_bytes_are_saved_by_other_groups_than_multiplications(network: Path, whole: Report, tmp_path: Path) -> None:
    report = tuned(network, tmp_path, speed="bytes")
    assert report.tuning is not None
    assert whole.tuning is not None
    assert report.verdict == "pass"
    assert report.tuning.cost != whole.tuning.cost
