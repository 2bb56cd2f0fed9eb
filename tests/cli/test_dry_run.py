"""`--dry-run`, `--force`, `--samples`, `-q` and `-v`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import CALIB, DIGITS, EVAL, Done

Cli = Callable[..., Done]
FAST = ("--backend", "onnxruntime", "--data", EVAL, "--samples", "40")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter an empty working directory."""
    monkeypatch.chdir(tmp_path)


def rehearsed(done: Done) -> tuple[list[str], list[str]]:
    """Return the stages that are cached, and those that would run."""
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return [name for name, _ in found["cached"]], found["would_run"]


def test_a_dry_run_lists_the_stages_and_writes_nothing(cli: Cli) -> None:
    done = cli("convert", DIGITS, "-p", "int8", "--calib", CALIB, *FAST, "--dry-run", "--format", "json")
    stages = ["read", "prepare", "equalize", "calibrate", "observe", "guard", "precision", "compare", "gate"]
    assert rehearsed(done) == ([], stages)
    assert not list(Path().iterdir())


def test_a_dry_run_tells_what_is_cached(cli: Cli) -> None:
    assert cli("convert", DIGITS, *FAST, "-q").code == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    same = cli("convert", DIGITS, *FAST, "--dry-run", "--format", "json")
    stages = ["read", "prepare", "observe", "precision", "compare", "gate"]
    assert rehearsed(same) == (stages, [])
    gated = cli("convert", DIGITS, *FAST, "--dry-run", "--format", "json", "--gate", "cosine=0.9")
    assert rehearsed(gated) == (stages[:-1], ["gate"])
    text = cli("convert", DIGITS, *FAST, "--dry-run").out
    assert text.splitlines()[-1] == (
        "dry run: 6 stages are cached, 0 would run; nothing was written to trtopt-out/model/fp16"
    )
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--gate", "top2=1%"), "--gate names an unknown metric"),
        (("--shape", "input=1x1x28x29"), "does not fit input"),
        (("--calib", "nowhere"), "nowhere: no such file or folder"),
        (("--keep", "nothing"), "nothing"),
        (("--format", "junit"), "--dry-run does not support --format junit"),
    ],
)
def test_a_dry_run_checks_flags_files_gates_and_shapes(flags: tuple[str, ...], said: str, cli: Cli) -> None:
    if flags[0] == "--keep":  # nodes are known once the graph is prepared
        assert cli("convert", DIGITS, *FAST, "-q").code == 0
    done = cli("convert", DIGITS, *FAST, "--dry-run", *flags)
    assert done.code == 2, done.out
    assert said in done.err


def test_other_commands_have_a_dry_run(cli: Cli) -> None:
    calibrated = cli("calibrate", DIGITS, "--calib", CALIB, "--dry-run").out.splitlines()
    assert [line.split()[0] for line in calibrated[:-1]] == ["read", "prepare", "check", "equalize", "calibrate"]
    compared = cli("compare", DIGITS, DIGITS, "--data", EVAL, "--dry-run", "--format", "json")
    assert rehearsed(compared) == ([], ["compare", "gate"])
    assert not list(Path().iterdir())


def test_a_dry_run_keeps_the_report_of_an_earlier_run(cli: Cli) -> None:
    assert cli("convert", DIGITS, *FAST, "-o", "run", "-q").code == 0
    before = Path("run/report.json").read_bytes()
    assert cli("convert", DIGITS, "--data", EVAL, "--no-compare", "-o", "run", "--dry-run").code == 0
    assert Path("run/report.json").read_bytes() == before


def test_force_runs_cached_stages_again(cli: Cli) -> None:
    run = ("convert", DIGITS, *FAST, "-o", "run")
    assert cli(*run, "-q").code == 0
    statuses = {stage["status"] for stage in json.loads(cli(*run, "--format", "json").out)["stages"]}
    assert statuses == {"cached"}
    statuses = {stage["status"] for stage in json.loads(cli(*run, "--force", "--format", "json").out)["stages"]}
    assert statuses == {"ran"}


def test_samples_are_at_most_as_many_as_asked_for_and_the_report_says_so(cli: Cli) -> None:
    done = cli("convert", DIGITS, *FAST, "-o", "run", "--format", "json")
    report = json.loads(done.out)
    assert report["comparison"]["samples"] == 40
    said = "--samples 40: 40 of 1000 samples, spread evenly"
    assert any(said in line for line in (*report["warnings"], *report.get("notes", ())))


def test_samples_of_class_folders_are_of_every_class(tmp_path: Path) -> None:
    from trtopt.data import open_dataset
    from trtopt.graph.file import describe

    few = open_dataset(str(CALIB), describe(DIGITS).inputs, most=20)
    whole = open_dataset(str(CALIB), describe(DIGITS).inputs)
    assert len(few) == 20
    assert few.digest != whole.digest
    assert set(few.ids) < set(whole.ids)
    assert few.labels is None or len(set(few.labels)) == 10


def test_quiet_prints_only_errors(cli: Cli) -> None:
    assert cli("convert", DIGITS, *FAST, "-o", "run", "-q").err == ""
    assert cli("convert", DIGITS, *FAST, "-o", "run", "-q", "--gate", "nothing=1").err.startswith("error: ")


def test_verbose_shows_the_log_and_the_traceback_of_the_framework(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "nets.py").write_text("def net():\n    print('loading weights')\n    raise KeyError('layer4')\n")
    run = ("export", "nets:net", "-o", "m.onnx", "--shape", "x=1x3")
    plain = cli(*run)
    assert "Traceback" not in plain.err
    shutil.rmtree("trtopt-out")
    verbose = cli(*run, "-v")
    assert verbose.code == 2
    assert "loading weights" in verbose.err
    assert "raise KeyError('layer4')" in verbose.err  # in the framework's process
    assert "in bring" in verbose.err  # in trtopt's
