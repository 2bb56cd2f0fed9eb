"""Flags without effect beside others are refused, in one table; settings, which serve several runs, are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from support import CALIB, DIGITS, EVAL, Done

from trtopt.cli.commands import app
from trtopt.cli.idle import IDLE

Cli = Callable[..., Done]
GROUP = typer.main.get_command(app)
INT8 = ("-p", "int8", "--calib", CALIB)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter an empty working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "flag", "why"),
    [
        (
            ("convert", DIGITS, "--no-compare", "--rest", "fp32"),
            "--rest",
            "only int8 and fp8 have a fallback precision",
        ),
        (("convert", DIGITS, "--no-compare", "--method", "mse"), "--method", "only int8 and fp8 are calibrated"),
        (
            ("convert", DIGITS, "--no-compare", "--calib-table", "t"),
            "--calib-table",
            "only int8 and fp8 are calibrated",
        ),
        (("convert", DIGITS, "--no-compare", "--no-equalization"), "--no-equalization", "only int8 and fp8"),
        (("convert", DIGITS, *INT8, "--calib-table", "t", "--method", "mse"), "--method", "the scales are read from"),
        (
            ("convert", DIGITS, *INT8, "--backend", "onnxruntime", "--workspace", "1GiB"),
            "--workspace",
            "--backend onnxruntime builds no engine",
        ),
        (
            ("convert", DIGITS, *INT8, "--backend", "onnxruntime", "--tensorrt", "tensorrt"),
            "--tensorrt",
            "--backend onnxruntime",
        ),
        (("convert", DIGITS, "--no-compare", "--recipe", "imagenet"), "--recipe", "there are no samples to read"),
        (("convert", DIGITS, "--no-compare", "--samples", "3"), "--samples", "there are no samples to read"),
        (("export", "m:f", "-o", "m.onnx", "--skip-bad"), "--skip-bad", "there are no samples to read"),
        (("bench", DIGITS, "--recipe", "imagenet"), "--recipe", "there are no samples to read"),
        (("bench", DIGITS, "--device", "cpu", "--tf32"), "--tf32", "it applies to a GPU"),
        (("bench", DIGITS, "--max-batch", "--seconds", "3"), "--seconds", "it applies to a sweep"),
        (("convert", DIGITS, *INT8, "--dry-run", "--force"), "--force", "--dry-run runs nothing"),
        (("convert", DIGITS, *INT8, "-q", "-v"), "--quiet", "it contradicts --verbose"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_typed_flag_without_effect_is_refused(arguments: tuple[object, ...], flag: str, why: str, cli: Cli) -> None:
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: {flag} has no effect: {why}")
    assert not list(Path().iterdir())


def test_a_setting_without_effect_is_not_refused(cli: Cli) -> None:
    Path("trtopt.toml").write_text('[convert]\nrest = "fp32"\nrecipe = "imagenet"\n')
    done = cli("convert", DIGITS, "--backend", "onnxruntime", "--no-compare", "-o", "run")
    assert done.code == 0, done.err


def test_the_table_names_flags_that_exist() -> None:
    for entry in IDLE:
        for command in entry.commands:
            names = {param.name for param in GROUP.commands[command].params}  # type: ignore[attr-defined]
            assert set(entry.flags) <= names, (command, entry.flags)


def test_a_flag_with_its_effect_is_taken(cli: Cli) -> None:
    flags = ("--rest", "fp32", "--method", "minmax", "--backend", "onnxruntime", "--samples", "8", "-o", "run")
    assert cli("convert", DIGITS, *INT8, "--data", EVAL, *flags, "--allow-inconclusive").code in (0, 1)
