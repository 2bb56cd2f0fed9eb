"""A command line of trtexec is answered with that of trtopt, which parses."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from support import Done

from trtopt.cli.commands import app

Cli = Callable[..., Done]
GROUP = typer.main.get_command(app)
SHAPES = ("--minShapes=x:1x3", "--optShapes=x:8x3", "--maxShapes=x:32x3")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter a folder with a calibration cache of TensorRT."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.cache").write_text("TRT-8503-EntropyCalibration2\nx: 3c010a14\n")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (("--onnx=m.onnx", "--fp16"), "convert m.onnx --precision fp16 --no-compare"),
        (("convert", "m.onnx", "--fp16", "--data", "eval"), "convert m.onnx --data eval --precision fp16"),
        (("convert", "m.onnx", "--int8"), "convert m.onnx --precision int8 --calib data/calib"),
        (("convert", "m.onnx", "--fp16", "--int8"), "convert m.onnx --precision int8 --calib data/calib"),
        (("convert", "m.onnx", "--best"), "convert m.onnx --precision int8 --calib data/calib"),
        (("convert", "m.onnx", *SHAPES), "convert m.onnx --shape x=1x3:8x3:32x3 --no-compare"),
        (("convert", "m.onnx", SHAPES[1]), "convert m.onnx --shape x=8x3 --no-compare"),
        (("--onnx=m.onnx", "--saveEngine=out/m.engine"), "convert m.onnx -o out/m --no-compare"),
        (
            ("--onnx=m.onnx", "--fp16", "--layerPrecisions=/conv1:fp32,*:fp16"),
            "convert m.onnx --precision fp16 --keep /conv1=fp32 --keep '*' --no-compare",
        ),
        (
            ("--onnx=m.onnx", "--int8", "--calib=c.cache"),
            "convert m.onnx --precision int8 --calib-table c.cache --no-compare",
        ),
        (
            ("convert", "m.onnx", "-p", "int8", "--calib", "c.cache"),
            "convert m.onnx -p int8 --calib-table c.cache --no-compare",
        ),
        (
            ("--onnx=m.onnx", "--memPoolSize=workspace:4096", "--workspace=2048"),
            "convert m.onnx --workspace 2048MiB --no-compare",
        ),
        (("convert", "m.onnx", "--int8", "--calib", "images"), "convert m.onnx --calib images --precision int8"),
        (("convert", "m.onnx", "--precision=int8", "--fp16"), "convert m.onnx --precision=int8 --no-compare"),
        (("--loadEngine=e.engine", "--shapes=x:8x3", "--duration=10"), "bench e.engine --shape x=8x3 --seconds 10"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_of_trtexec_are_answered_with_the_command(typed: tuple[str, ...], answer: str, cli: Cli) -> None:
    done = cli(*typed)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.endswith(f"of trtexec. Write: trtopt {answer}")
    command, *words = shlex.split(answer)
    GROUP.commands[command].make_context(command, words)  # type: ignore[attr-defined]


def test_calib_with_samples_is_not_trtexecs(cli: Cli) -> None:
    assert "trtexec" not in cli("convert", "m.onnx", "-p", "int8", "--calib", "folder").err


def test_a_workspace_with_a_unit_is_not_trtexecs(cli: Cli) -> None:
    assert "trtexec" not in cli("convert", "m.onnx", "--workspace=4GiB").err
