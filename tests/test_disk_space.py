"""A stage that does not change the network writes no second copy of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support import CALIB, DIGITS, EVAL, Done

Cli = Callable[..., Done]
RUN = ("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, "--backend", "onnxruntime", "-q")


def test_a_network_that_is_not_equalized_is_stored_once(cli: Cli, tmp_path: Path) -> None:
    assert cli(*RUN, "-o", tmp_path).code == 0
    prepared, equalized = tmp_path / "fp32.onnx", tmp_path / "equalized.onnx"
    assert prepared.samefile(equalized)
    before = equalized.read_bytes()
    # A later run replaces one name, and the other keeps its content.
    assert cli("convert", DIGITS, "--no-compare", "--shape", "input=1x1x28x28", "-o", tmp_path, "-q").code == 0
    assert prepared.read_bytes() != before
    assert equalized.read_bytes() == before
