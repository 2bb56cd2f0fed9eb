"""Tables of an equalized network: they fit no other, and how it was equalized goes with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import Done

Cli = Callable[..., Done]
BODY = "{ h = HardSwish(x) y = MatMul(h, w) }"
SPREAD = np.geomspace(0.05, 20, 16, dtype=np.float32)


@pytest.fixture
def calibrated(tmp_path: Path, cli: Cli) -> Path:
    """A folder with `model.onnx`, whose channels differ, `calib.npy`, and what `trtopt calibrate` made, in `run`."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 19]> g (float[n, 16] x) => (float[n, 24] y) {BODY}'
    )
    random = np.random.default_rng(0)
    weight = random.normal(size=(16, 24)).astype(np.float32) / SPREAD[:, None]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "model.onnx")
    np.save(tmp_path / "calib.npy", random.normal(size=(640, 16)).astype(np.float32) * SPREAD)
    done = cli("calibrate", tmp_path / "model.onnx", "--calib", tmp_path / "calib.npy", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert "brought to similar ranges" in done.err
    return tmp_path


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_network_is_equalized_as_the_table_says_whatever_it_is_converted_to(
    calibrated: Path, cli: Cli, precision: str
) -> None:
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", precision, "--calib", calibrated / "calib.npy"),
        *("--calib-table", calibrated / "run/calibration.json", "-o", calibrated / precision),
        *("--backend", "onnxruntime", "--gate", "sqnr=20"),
    )
    assert done.code == 0, done.err
    same = [(calibrated / folder / "equalized.onnx").read_bytes() for folder in ("run", precision)]
    assert same[0] == same[1]


def test_a_cache_that_cannot_say_how_it_was_equalized_is_refused(calibrated: Path, cli: Cli) -> None:
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", "int8", "--calib", calibrated / "calib.npy"),
        *("--calib-table", calibrated / "run/calibration.cache", "-o", calibrated / "other"),
    )
    assert done.code == 2
    assert "is of an equalized network" in done.err
    assert "calibration.json" in done.err


@pytest.mark.parametrize("flags", [(), ("--calib", "others.npy")])
def test_without_the_samples_that_it_was_made_from_it_is_refused(
    calibrated: Path, cli: Cli, flags: tuple[str, ...]
) -> None:
    np.save(calibrated / "others.npy", np.ones((32, 16), np.float32) * SPREAD)
    given = [calibrated / flag if flag.endswith(".npy") else flag for flag in flags]
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", "int8", *given, "--data", calibrated / "others.npy"),
        *("--calib-table", calibrated / "run/calibration.json", "-o", calibrated / "other"),
    )
    assert done.code == 2
    assert "takes the samples that it was made from. Give --calib those samples" in done.err


def test_there_is_a_cache_for_int8_alone(calibrated: Path, cli: Cli) -> None:
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", "fp8", "--calib", calibrated / "calib.npy"),
        *("-o", calibrated / "run", "--backend", "onnxruntime", "--gate", "sqnr=20"),
    )
    assert done.code == 0, done.err
    assert not (calibrated / "run/calibration.cache").exists()
