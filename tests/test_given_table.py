"""`--calib-table`: the use of a table, and its warnings; a table of an equalized network fits only that network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import CALIB, DIGITS, EVAL, Done

from trtopt.commands.calibrate import calibrate
from trtopt.plan import ConvertPlan, DataPlan

Cli = Callable[..., Done]
HERE = ("--backend", "onnxruntime")
BODY = "{ h = HardSwish(x) y = MatMul(h, w) }"
SPREAD = np.geomspace(0.05, 20, 16, dtype=np.float32)


@pytest.fixture
def calibrated(tmp_path: Path, cli: Cli) -> Path:
    """Return a folder with `model.onnx`, whose channels differ in range, `calib.npy`, and a calibration in `run`."""
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
    assert "1 activation equalized" in done.err
    return tmp_path


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_network_is_equalized_as_the_table_states_for_any_precision(
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


def test_a_cache_without_its_equalization_is_refused(calibrated: Path, cli: Cli) -> None:
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", "int8", "--calib", calibrated / "calib.npy"),
        *("--calib-table", calibrated / "run/calibration.cache", "-o", calibrated / "other"),
    )
    assert done.code == 2
    assert "was made for an equalized network" in done.err
    assert "calibration.json" in done.err


@pytest.mark.parametrize("flags", [(), ("--calib", "others.npy")])
def test_a_table_without_its_calibration_samples_is_refused(calibrated: Path, cli: Cli, flags: tuple[str, ...]) -> None:
    np.save(calibrated / "others.npy", np.ones((32, 16), np.float32) * SPREAD)
    given = [calibrated / flag if flag.endswith(".npy") else flag for flag in flags]
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", "int8", *given, "--data", calibrated / "others.npy"),
        *("--calib-table", calibrated / "run/calibration.json", "-o", calibrated / "other"),
    )
    assert done.code == 2
    assert "are needed to equalize the network again. Give these samples with --calib" in done.err


def test_a_cache_is_written_for_int8_only(calibrated: Path, cli: Cli) -> None:
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", "fp8", "--calib", calibrated / "calib.npy"),
        *("-o", calibrated / "run", "--backend", "onnxruntime", "--gate", "sqnr=20"),
    )
    assert done.code == 0, done.err
    assert not (calibrated / "run/calibration.cache").exists()


def test_a_table_of_an_equalized_network_is_refused_without_equalization(calibrated: Path, cli: Cli) -> None:
    done = cli(
        *("convert", calibrated / "model.onnx", "-p", "int8", "--calib", calibrated / "calib.npy"),
        *("--calib-table", calibrated / "run/calibration.json", "--no-equalization", "-o", calibrated / "other"),
    )
    assert done.code == 2
    assert "do not fit the network without equalization. Remove --no-equalization" in done.err


def test_calibrate_names_the_network_of_its_tables(calibrated: Path, cli: Cli) -> None:
    again = cli("calibrate", calibrated / "model.onnx", "--calib", calibrated / "calib.npy", "-o", calibrated / "run")
    assert f"The scales belong to {calibrated / 'run/equalized.onnx'}" in again.out


@pytest.fixture(scope="module")
def entropy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrate the digits sample by entropy for INT8, and return the table's path."""
    folder = tmp_path_factory.mktemp("entropy")
    plan = ConvertPlan(
        source=DIGITS, precision="int8", run_dir=folder, calib=DataPlan(source=str(CALIB)), method="entropy"
    )
    calibrate(plan)
    return folder / "calibration.json"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"PRECISION": "int8"}, "6 scales read from "),
        ({"PRECISION": "int8", "METHOD": "minmax"}, "--method minmax is ignored"),
        ({"PRECISION": "fp8"}, "was calibrated for int8: it was not evaluated for fp8"),
        ({"PRECISION": "fp16"}, "are ignored: fp16 has no scales"),
    ],
)
def test_settings_that_a_table_overrides_are_warned_about(
    entropy: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], told: str
) -> None:
    for flag, value in {**flags, "CALIB_TABLE": str(entropy)}.items():
        monkeypatch.setenv(f"TRTOPT_CONVERT_{flag}", value)
    done = cli("convert", DIGITS, "--data", EVAL, *HERE, "-o", tmp_path / "r")
    assert done.code == 0, done.err
    assert told in " ".join(done.out.split())


def test_the_verdict_says_that_it_rests_on_the_samples_that_correct_biases(
    entropy: Path, tmp_path: Path, cli: Cli
) -> None:
    both = ("--calib", EVAL, "--data", EVAL)
    done = cli("convert", DIGITS, "-p", "int8", "--calib-table", entropy, *both, *HERE, "-o", tmp_path / "r")
    assert "(measured on the calibration samples: no evidence" in done.out.splitlines()[-1]


def test_a_given_table_leaves_no_other_table_beside_its_graph(entropy: Path, tmp_path: Path, cli: Cli) -> None:
    cli("calibrate", DIGITS, "--calib", CALIB, "--method", "minmax", "-o", tmp_path)
    done = cli("convert", DIGITS, "-p", "int8", "--calib-table", entropy, "--data", EVAL, *HERE, "-o", tmp_path)
    assert done.code == 0, done.err
    assert not list(tmp_path.glob("calibration.*"))


def test_a_given_table_inside_the_run_directory_stays_there(tmp_path: Path, cli: Cli) -> None:
    cli("calibrate", DIGITS, "--calib", CALIB, "-o", tmp_path)
    table = (tmp_path / "calibration.json").read_bytes()
    given = ("--calib-table", tmp_path / "calibration.json", "--data", EVAL)
    for _ in range(2):
        done = cli("convert", DIGITS, "-p", "int8", *given, *HERE, "-o", tmp_path)
        assert done.code == 0, done.err
    assert (tmp_path / "calibration.json").read_bytes() == table


def test_calibrating_another_network_deletes_the_graph_of_the_first(tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    cli("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, *HERE, "-o", run)
    proto = onnx.load(DIGITS)
    last = next(tensor for tensor in proto.graph.initializer if tensor.name == proto.graph.node[-1].input[1])
    last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) * 1.01, last.name))
    onnx.save(proto, tmp_path / "tuned.onnx")  # only the last layer: activations, and so scales, are the same
    assert cli("calibrate", tmp_path / "tuned.onnx", "--calib", CALIB, "-o", run).code == 0
    assert not (run / "typed.onnx").exists()
    assert not (run / "report.json").exists()


def test_calibrating_again_deletes_graph_and_verdict_of_other_scales(tmp_path: Path, cli: Cli) -> None:
    convert = ("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, *HERE, "-o", tmp_path)
    cli(*convert, "--method", "entropy")
    made = {"typed.onnx", "report.json", "report.html"}
    cli("calibrate", DIGITS, "--calib", CALIB, "--method", "entropy", "-o", tmp_path)
    assert made <= {path.name for path in tmp_path.iterdir()}
    cli("calibrate", DIGITS, "--calib", CALIB, "--method", "minmax", "-o", tmp_path)
    assert not made & {path.name for path in tmp_path.iterdir()}


def test_calibrating_for_a_precision_without_scales_is_refused(tmp_path: Path, cli: Cli) -> None:
    done = cli("calibrate", DIGITS, "--calib", CALIB, "-p", "fp16", "-o", tmp_path / "r")
    assert done.code == 2
    assert "fp16 has no scales to calibrate. Choose int8 or fp8" in done.err


def test_few_calibration_samples_are_warned_about(calibrated: Path, cli: Cli) -> None:
    np.save(calibrated / "few.npy", np.load(calibrated / "calib.npy")[:3])
    done = cli("calibrate", calibrated / "model.onnx", "--calib", calibrated / "few.npy", "-o", calibrated / "f")
    assert "3 calibration samples are few: use 100 to 500" in done.err
    assert "dB SQNR on 3 samples" in done.err
