"""`--keep` and the builder's flags on the command line, and the hint after a failed gate."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., object]
DIGITS = Path(__file__).parent.parent / "samples/digits/model.onnx"
DATA = ("--calib", DIGITS.parent.parent.parent / "calibration/digits", "--data", DIGITS.parent / "eval.npz")
INT8 = ("convert", DIGITS, "-p", "int8", *DATA, "--backend", "onnxruntime")


def test_a_failed_gate_ends_with_a_command_that_can_be_pasted(cli: Cli, tmp_path: Path) -> None:
    failed = cli(*INT8, "--gate", "sqnr=60dB", "-o", tmp_path)
    assert failed.code == 1  # type: ignore[attr-defined]
    said = " ".join(failed.out.split())  # type: ignore[attr-defined]
    hint = said.partition("in higher precision: ")[2].partition(" to search for")[0]
    command = shlex.split(hint.partition(" report:")[0])
    assert command[:2] == ["trtopt", "convert"]
    assert command.count("--keep") == 3
    again = cli(*command[1:])
    assert again.code == 1, again.err  # type: ignore[attr-defined]
    assert "kept by --keep" in " ".join(again.out.split())  # type: ignore[attr-defined]


def test_a_failed_gate_names_the_search_with_the_same_arguments(cli: Cli, tmp_path: Path) -> None:
    failed = cli(*INT8, "--gate", "logits:sqnr=200dB,cosine=0.9", "--method", "minmax", "-o", tmp_path / "a")
    words = " ".join(failed.out.split())  # type: ignore[attr-defined]
    command = shlex.split(words.partition("to search for the nodes to keep: ")[2].partition(" report:")[0])
    assert command[:3] == ["trtopt", "tune", str(DIGITS)]
    assert command[3:] == [
        *map(str, DATA), "--method", "minmax", "--gate", "logits:sqnr=200.0dB,cosine=0.9", "--backend", "onnxruntime",
    ]  # fmt: skip
    again = cli(*command[1:], "--dry-run", "-o", tmp_path / "b")
    assert again.code == 0, again.err  # type: ignore[attr-defined]


def test_no_search_is_named_where_the_gates_fail_with_nothing_quantized(cli: Cli, tmp_path: Path) -> None:
    failed = cli(*INT8, "--gate", "sqnr=200dB", "--keep", "Conv", "-o", tmp_path)
    assert failed.code == 1  # type: ignore[attr-defined]
    assert "nothing was converted to int8" in failed.out  # type: ignore[attr-defined]
    assert "trtopt tune" not in failed.out  # type: ignore[attr-defined]


def test_a_comparison_that_failed_names_nodes_to_keep_and_the_search(cli: Cli, tmp_path: Path) -> None:
    cli(*INT8, "--method", "minmax", "-o", tmp_path / "a")
    failed = cli("compare", DIGITS, tmp_path / "a", "--data", DATA[3], "--gate", "sqnr=60dB", "-o", tmp_path / "b")
    words = " ".join(failed.out.split())  # type: ignore[attr-defined]
    assert failed.code == 1  # type: ignore[attr-defined]
    assert "convert again with: --keep " in words
    assert f"trtopt tune {DIGITS} --calib CALIB --data {DATA[3]} --gate sqnr=60.0dB" in words


def test_a_misspelt_node_is_refused_before_calibration(cli: Cli, tmp_path: Path) -> None:
    done = cli(*INT8, "--keep", "/0/Conv_output", "-o", tmp_path)
    assert done.code == 2  # type: ignore[attr-defined]
    assert "Did you mean /0/Conv_output_0?" in done.err  # type: ignore[attr-defined]
    assert "calibrate" not in done.err  # type: ignore[attr-defined]


def test_only_of_a_settings_file_restricts_the_scales(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trtopt.toml").write_text('[calibrate]\nonly = ["/3/Conv_output_0"]\nmethod = "minmax"\n')
    done = cli("calibrate", DIGITS, "--calib", DATA[1], "-o", tmp_path / "table", "--no-equalization")
    assert done.code == 0, done.err  # type: ignore[attr-defined]
    assert done.out.startswith("1 scale by minmax")  # type: ignore[attr-defined]


def test_inspect_shows_what_only_lowers(cli: Cli, tmp_path: Path) -> None:
    done = cli("inspect", DIGITS, "--only", "/3/Conv_output_0", "--nodes")
    assert done.code == 0, done.err  # type: ignore[attr-defined]
    lines = done.out.splitlines()  # type: ignore[attr-defined]
    assert [line.split()[1] for line in lines if line.split()[:1] == ["int8"]] == ["/3/Conv_output_0"]


@pytest.mark.parametrize("precision", ["int8", "fp8", "fp16", "bf16"])
def test_inspect_decides_as_convert_does(cli: Cli, tmp_path: Path, precision: str) -> None:
    flags = ("-p", precision, "--keep", "last", "--keep", "/3/Conv_output_0=fp32")
    calib = DATA if precision in ("int8", "fp8") else ()
    converted = cli("convert", DIGITS, *flags, *calib, "--backend", "onnxruntime", "--no-compare", "-o", tmp_path)
    assert converted.code == 0, converted.err  # type: ignore[attr-defined]
    inspected = cli("inspect", DIGITS, *flags, "--format", "json")
    assert inspected.code == 0, inspected.err  # type: ignore[attr-defined]
    found, made = json.loads(inspected.out), json.loads((tmp_path / "report.json").read_text())  # type: ignore[attr-defined]
    assert found["decided"] == f"{precision} would"
    assert _precisions(found["decisions"]) == _precisions(made["typed"]["decisions"])


def _precisions(decisions: list[dict[str, str]]) -> dict[str, str]:
    return {decision["node"]: decision["precision"] for decision in decisions}


def test_inspect_refuses_a_precision_of_a_run(cli: Cli, tmp_path: Path) -> None:
    made = cli("convert", DIGITS, "--backend", "onnxruntime", "--no-compare", "-o", tmp_path)
    assert made.code == 0, made.err  # type: ignore[attr-defined]
    done = cli("inspect", tmp_path, "--keep", "last")
    assert done.code == 2  # type: ignore[attr-defined]
    assert "a precision has no effect: those of" in done.err  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ("--backend", "onnxruntime", "--tactic-sources", "-CUDNN"),
            "--tactic-sources has no effect: --backend onnxruntime builds no engine",
        ),
        (("--tactic-sources", "nonsense"), "nonsense is not one of them"),
        (("--backend", "onnxruntime", "--shape", "1x1x28x28"), "--shape 1x1x28x28 names no input"),
        (("--backend", "onnxruntime", "--keep", "=fp32"), "--keep =fp32 names no node"),
    ],
)
def test_a_flag_that_cannot_work_is_refused_at_once(cli: Cli, tmp_path: Path, flags: tuple[str, ...], why: str) -> None:
    done = cli("convert", DIGITS, "-p", "int8", *DATA, *flags, "-o", tmp_path)
    assert done.code == 2  # type: ignore[attr-defined]
    assert why in done.err  # type: ignore[attr-defined]
