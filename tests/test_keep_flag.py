"""`--keep` and the builder's flags on the command line, and the hint after a failed gate."""

from __future__ import annotations

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
    command = shlex.split(said.partition("in higher precision: ")[2].partition(" report:")[0])
    assert command[:2] == ["trtopt", "convert"]
    assert command.count("--keep") == 3
    again = cli(*command[1:])
    assert again.code == 1, again.err  # type: ignore[attr-defined]
    assert "kept by --keep" in " ".join(again.out.split())  # type: ignore[attr-defined]


def test_a_misspelt_node_is_refused_before_calibration(cli: Cli, tmp_path: Path) -> None:
    done = cli(*INT8, "--keep", "/0/Conv_output", "-o", tmp_path)
    assert done.code == 2  # type: ignore[attr-defined]
    assert "Did you mean /0/Conv_output_0?" in done.err  # type: ignore[attr-defined]
    assert "calibrate" not in done.err  # type: ignore[attr-defined]


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
