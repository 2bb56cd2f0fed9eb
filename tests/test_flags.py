"""Tests that no flag is dropped: repeated flags accumulate or are errors, and flags without effect are errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from support import DIGITS, EVAL, Done

from trtopt.cli.command import Command
from trtopt.cli.commands import app
from trtopt.commands.convert import convert
from trtopt.compare.gates import parse_gates
from trtopt.errors import UsageError
from trtopt.plan import ConvertPlan

Cli = Callable[..., Done]
FAST = ("--backend", "onnxruntime", "-o", "run")
LIMITS = ("cosine=0.9", "sqnr=200")
"""Gate that the digits in FP16 pass, and gate that they fail."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty working directory, with an environment without settings."""
    for name in list(os.environ):
        if name.startswith("TRTOPT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished FP16 run."""
    folder = tmp_path_factory.mktemp("run") / "fp16"
    command = ("convert", DIGITS, "--data", EVAL, "--backend", "onnxruntime", "-o", folder)
    assert process(folder.parent, *command).code == 0
    return folder


def process(folder: Path, *arguments: object, **environment: str) -> Done:
    """Run the program in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "trtopt", *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def gates(folder: Path | str) -> list[tuple[str, float]]:
    """Return metric and limit of each gate in a run's report."""
    found = json.loads((Path(folder) / "report.json").read_text())["comparison"]["gates"]
    return [(gate["metric"], gate["limit"]) for gate in found if not gate["default"]]


def refusal(done: Done) -> str:
    """Return the only line of an error that comes before anything is run or written."""
    assert done.code == 2, done
    (line,) = done.err.splitlines()
    # With --format json the error is on stdout, too.
    assert not done.out or json.loads(done.out)["error"]["message"] in line
    assert line.startswith("error: ")
    assert not Path("run").exists()
    assert not Path("trtopt-out").exists()
    return line.removeprefix("error: ")


def test_every_command_refuses_repeated_flags() -> None:
    group = typer.main.get_command(app)
    assert {type(command) for command in group.commands.values()} == {Command}  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", [LIMITS, LIMITS[::-1]])
def test_every_gate_of_a_repeated_flag_is_held(order: tuple[str, str], here: Path) -> None:
    done = process(here, "convert", DIGITS, "--data", EVAL, *FAST, "--gate", order[0], f"--gate={order[1]}")
    assert done.code == 1, done.err
    assert sorted(gates("run")) == [("cosine", 0.9), ("sqnr", 200.0)]


def test_repeated_and_comma_separated_gates_may_be_mixed(cli: Cli, run_dir: Path) -> None:
    done = cli(
        *("compare", "--from", run_dir, "--format", "json"),
        *("--gate", "sqnr=20,cosine=0.9", "--gate", "rmse=1", "--gate", "cosine=0.9"),
    )
    assert done.code == 0, done.err
    held = [gate for gate in json.loads(done.out)["comparison"]["gates"] if not gate["default"]]
    assert [gate["metric"] for gate in held] == ["sqnr", "cosine", "rmse"]  # a gate written twice is one gate


def test_limits_that_contradict_each_other_are_both_held(cli: Cli, run_dir: Path) -> None:
    done = cli("compare", "--from", run_dir, "--format", "json", "--gate", "sqnr=20,sqnr=200")
    assert done.code == 1
    assert [gate["verdict"] for gate in json.loads(done.out)["comparison"]["gates"] if not gate["default"]] == [
        "pass",
        "fail",
    ]


def test_gates_on_speed_add_up_too(cli: Cli) -> None:
    quick = ("--batch", "1", "--seconds", "0.5", "--device", "cpu", "-o", "run")
    done = cli("bench", DIGITS, *quick, "--gate", "latency_mean=1us", "--gate", "throughput=0.001")
    assert done.code == 1, done.err
    report = json.loads(Path("run/report.json").read_text())
    held = report["benchmark"]["gates"]
    assert [(gate["metric"], gate["verdict"]) for gate in held] == [("latency_mean", "fail"), ("throughput", "pass")]


@pytest.mark.parametrize(
    "command", [("convert", DIGITS), ("compare", DIGITS, "r"), ("bench", DIGITS)], ids=lambda c: c[0]
)
def test_an_empty_gate_is_refused_for_it_may_be_an_unset_variable(command: tuple[object, ...], cli: Cli) -> None:
    assert refusal(cli(*command, "--data", EVAL, "--gate", " ")).startswith("--gate is empty")


@pytest.mark.parametrize(
    ("arguments", "flag", "values"),
    [
        (("convert", DIGITS, "-p", "int8", "-p", "fp16"), "--precision", "int8, fp16"),
        (("convert", DIGITS, "-pint8", "--precision=fp16"), "--precision", "int8, fp16"),
        (("convert", "-p", "int8", DIGITS, "--precision", "int8"), "--precision", "int8, int8"),
        (("convert", DIGITS, "--calib", "a b", "--calib=c", "--calib", "d"), "--calib", "'a b', c, d"),
        (("convert", DIGITS, "-o", "x", "--out", "y"), "--out", "x, y"),
        (("convert", DIGITS, "--format", "json", "--format", "nonsense"), "--format", "json, nonsense"),
        (("convert", DIGITS, "--workspace", "1", "--workspace", "2"), "--workspace", "1, 2"),
        (("convert", "--data", "a", "--data", "b"), "--data", "a, b"),
        (("calibrate", DIGITS, "--calib", "a", "--calib", "b"), "--calib", "a, b"),
        (("compare", DIGITS, "run", "--data", "a", "--data", ""), "--data", "a, ''"),
        (("compare", "--from", "a", "--from", "b"), "--from", "a, b"),
        (("export", "m:f", "-o", "x", "-oy"), "--out", "x, y"),
        (("bench", DIGITS, "--batch", "1", "--batch", "2"), "--batch", "1, 2"),
        (("report", "r", "--format", "json", "--format", "text"), "--format", "json, text"),
        (("inspect", DIGITS, "--format", "json", "--format", "json"), "--format", "json, json"),
        (("doctor", "--format", "json", "--format", "text"), "--format", "json, text"),
        (("config", "--format", "json", "--format", "text"), "--format", "json, text"),
        (("watch", "--interval", "1", "--interval", "2"), "--interval", "1, 2"),
    ],
    ids=lambda value: " ".join(map(str, value[:1])) if isinstance(value, tuple) else value,
)
def test_a_flag_of_one_value_is_given_once(arguments: tuple[object, ...], flag: str, values: str, cli: Cli) -> None:
    assert refusal(cli(*arguments)) == f"{flag} is given more than once: {values}. Give it once"


def test_a_repeated_flag_is_refused_by_the_program_itself(here: Path) -> None:
    line = refusal(process(here, "convert", DIGITS, "--data", EVAL, *FAST, "-p", "fp16", "-p", "fp32"))
    assert line == "--precision is given more than once: fp16, fp32. Give it once"


def test_switches_and_lists_may_be_repeated(cli: Cli) -> None:
    shape = ("--shape", "input=4x1x28x28")
    refused = refusal(cli("convert", DIGITS, "--no-compare", "--no-compare", *shape, *shape, "-p", "fp16"))
    assert refused.startswith("--shape is given twice for input input")  # checked by the stage that reads it


def test_arguments_after_two_dashes_are_not_flags(cli: Cli) -> None:
    assert "does not exist" in refusal(cli("inspect", "--format", "json", "--", "--format"))


def test_help_is_given_whatever_else_is_typed(cli: Cli) -> None:
    done = cli("convert", "-p", "int8", "-p", "fp16", "--help")
    assert (done.code, done.err) == (0, "")


def test_one_input_has_one_type(cli: Cli, here: Path) -> None:
    (here / "nets.py").write_text("def net():\n    raise RuntimeError\n")
    twice = ("--dtype", "x=int64", "--dtype", "x=float32")
    done = cli("export", "nets:net", "-o", "m.onnx", "--shape", "x=1x3", *twice)
    assert (done.code, done.out) == (2, "")
    assert "--dtype is given twice for input x" in done.err


def test_one_input_of_a_factory_has_one_shape(cli: Cli, here: Path) -> None:
    (here / "nets.py").write_text("def net():\n    raise RuntimeError\n")
    done = cli("export", "nets:net", "-o", "m.onnx", "--shape", "x=1x3", "--shape", "x=1x4")
    assert (done.code, done.out) == (2, "")
    assert "--shape is given twice for input x" in done.err


UNLOOKED = [
    ("--gate", "top1=1%"),
    ("--kind", "logits=scores"),
    ("--metric", "mine:metric"),
    ("--allow-inconclusive",),
]


@pytest.mark.parametrize("flags", UNLOOKED, ids=lambda flags: flags[0])
def test_flags_of_the_comparison_need_one(flags: tuple[str, ...], cli: Cli) -> None:
    line = refusal(cli("convert", DIGITS, "--no-compare", *flags))
    assert (
        line == f"{flags[0]} cannot be combined with --no-compare: it applies to the comparison. Leave out one of them"
    )


def test_a_gate_without_a_comparison_is_refused_by_the_program_itself(here: Path) -> None:
    assert "--gate cannot be combined with --no-compare" in refusal(
        process(here, "convert", DIGITS, "--no-compare", "--gate", "top1=1%")
    )


def test_a_gate_without_a_comparison_is_refused_in_python() -> None:
    plan = ConvertPlan(
        source=DIGITS, precision="fp16", run_dir=Path("run"), compare=False, gates=parse_gates("top1=1%")
    )
    with pytest.raises(UsageError, match="cannot be combined with --no-compare"):
        convert(plan)
    assert not Path("run").exists()


def test_a_refusal_says_which_settings_it_is_about(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trtopt.toml").write_text('[convert]\ngate = "top1=1%"\n')
    line = refusal(cli("convert", DIGITS, "--no-compare"))
    assert line.endswith("Leave out one of them (--gate is set by trtopt.toml)")
    monkeypatch.setenv("TRTOPT_CONVERT_GATE", "top1=2%")
    monkeypatch.setenv("TRTOPT_CONVERT_NO_COMPARE", "1")
    line = refusal(cli("convert", DIGITS))
    assert "--gate is set by TRTOPT_CONVERT_GATE" in line
    assert "--no-compare is set by TRTOPT_CONVERT_NO_COMPARE" in line
    assert "set by" not in refusal(cli("convert", DIGITS, "--no-compare", "--gate", "top1=1%"))


def test_a_sweep_without_gates_rejects_allow_inconclusive(cli: Cli) -> None:
    line = refusal(cli("bench", DIGITS, "--allow-inconclusive"))
    assert line == "--allow-inconclusive is about gates: there is none. Add --gate, or leave it out"


def test_a_list_of_gates_in_a_file_equals_a_string(cli: Cli, run_dir: Path) -> None:
    for text in ('"sqnr=20,rmse=1"', '["sqnr=20", "rmse=1"]', '["sqnr=20,rmse=1"]'):
        Path("trtopt.toml").write_text(f"[compare]\ngate = {text}\n")
        done = cli("compare", "--from", run_dir, "--format", "json")
        assert [gate["metric"] for gate in json.loads(done.out)["comparison"]["gates"] if not gate["default"]] == [
            "sqnr",
            "rmse",
        ], text


def test_a_typed_gate_replaces_those_of_the_settings(cli: Cli, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*flags: str) -> list[str]:
        done = cli("compare", "--from", run_dir, "--format", "json", *flags)
        return [gate["metric"] for gate in json.loads(done.out)["comparison"]["gates"] if not gate["default"]]

    Path("trtopt.toml").write_text('[compare]\ngate = ["sqnr=20"]\n')
    assert held() == ["sqnr"]
    monkeypatch.setenv("TRTOPT_COMPARE_GATE", "cosine=0.9, rmse=1")
    assert held() == ["cosine", "rmse"]
    assert held("--gate", "mean_abs=1") == ["mean_abs"]


def test_config_shows_gates_as_they_count(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trtopt.toml").write_text('[convert]\ngate = "top1=1%"\n[compare]\ngate = ["sqnr=20", "rmse=1"]\n')
    monkeypatch.setenv("TRTOPT_BENCH_GATE", "latency_p99=5ms, speedup=2x")
    found = json.loads(cli("config", "--format", "json").out)["commands"]
    assert found["convert"]["gate"]["value"] == "top1=1%"
    assert found["compare"]["gate"]["value"] == ["sqnr=20", "rmse=1"]
    assert found["bench"]["gate"]["value"] == "latency_p99=5ms, speedup=2x"


def test_a_file_that_init_wrote_is_valid(cli: Cli, run_dir: Path) -> None:
    assert cli("init", DIGITS).code == 0
    done = cli("compare", "--from", run_dir, "--format", "json")
    assert [gate["metric"] for gate in json.loads(done.out)["comparison"]["gates"] if not gate["default"]] == ["top1"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('kind = ["logits=values"]', "--kind logits=values differs from how"),
        ('kind = ["boxes=values"]', "--kind boxes=values differs from how"),
        ('metric = ["m:mine"]', "--metric m:mine differs from how"),
    ],
)
def test_from_rejects_settings_that_differ_from_the_run(setting: str, said: str, cli: Cli, run_dir: Path) -> None:
    Path("trtopt.toml").write_text(f"[compare]\n{setting}\n")
    line = refusal(cli("compare", "--from", run_dir, "--gate", "cosine=0.9"))
    assert line.startswith(said)
    assert "is set by trtopt.toml" in line


def test_from_accepts_settings_that_match_the_run(cli: Cli, run_dir: Path) -> None:
    Path("trtopt.toml").write_text('[compare]\nkind = ["logits=scores"]\n')
    assert cli("compare", "--from", run_dir, "--gate", "cosine=0.9").code == 0
