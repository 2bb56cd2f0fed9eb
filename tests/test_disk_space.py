"""A stage that does not change the network writes no second copy of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from support import CALIB, DIGITS, EVAL, Done

Cli = Callable[..., Done]
RUN = ("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, "--backend", "onnxruntime", "-q")


def test_weights_in_a_file_of_their_own_are_stored_once(cli: Cli, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(0, 0.02, (2048, 2100)).astype(np.float32)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[n, 2048] x) => (float[n, 2100] y) { y = MatMul(x, w) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "wide.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(0, 1, (32, 2048)).astype(np.float32))
    run = ("convert", tmp_path / "wide.onnx", "-p", "int8", "--calib", tmp_path / "data.npz", "--no-compare", "-q")
    for precision in ("int8", "fp8", "int8"):
        run = (*run[:3], precision, *run[4:])
        done = cli(*run, "--backend", "onnxruntime", "-o", tmp_path / "out")
        assert done.code == 0, done.err
        assert [path.name for path in (tmp_path / "out").glob("*.data")] == ["fp32.onnx.data"]
        onnx.load(tmp_path / "out/equalized.onnx")


def test_a_network_that_is_not_equalized_is_stored_once(cli: Cli, tmp_path: Path) -> None:
    assert cli(*RUN, "-o", tmp_path).code == 0
    prepared, equalized = tmp_path / "fp32.onnx", tmp_path / "equalized.onnx"
    assert prepared.samefile(equalized)
    before = equalized.read_bytes()
    # A later run replaces one name, and the other keeps its content.
    assert cli("convert", DIGITS, "--no-compare", "--shape", "input=1x1x28x28", "-o", tmp_path, "-q").code == 0
    assert prepared.read_bytes() != before
    assert equalized.read_bytes() == before
