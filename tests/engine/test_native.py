"""`--method native` where TensorRT has no calibrator of its own, or no GPU."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from support import CALIB, DIGITS

from trtopt.engine.trt import apart
from trtopt.engine.trt.native import check_native
from trtopt.engine.trt.versions import abilities
from trtopt.errors import EnvironmentUnableError


@pytest.mark.parametrize(
    ("package", "version", "has"),
    [
        ("tensorrt", "8.5.3", True),
        ("tensorrt", "10.16", True),
        ("tensorrt", "11.0", False),
        ("tensorrt_rtx", "1.7", False),
    ],
)
def test_tensorrt_8_and_10_have_a_calibrator(package, version, has):
    trt = SimpleNamespace(title=f"{package} {version}", can=abilities(package, version))
    if has:
        check_native(trt)
        return
    with pytest.raises(EnvironmentUnableError, match="has no calibrator of its own"):
        check_native(trt)


@pytest.mark.parametrize("command", ["convert", "calibrate"])
def test_native_is_refused_elsewhere_before_anything_is_run(cli, tmp_path, command):
    more = ["-p", "int8", "--no-compare"] if command == "convert" else []
    done = cli(command, DIGITS, "--calib", CALIB, "--method", "native", *more, "-o", tmp_path)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert "calibrator" in done.err or "GPU" in done.err


def test_native_is_for_int8_alone(cli, tmp_path):
    done = cli("convert", DIGITS, "-p", "fp8", "--calib", CALIB, "--method", "native", "--no-compare", "-o", tmp_path)
    assert done.code == 2


def test_the_cache_of_a_calibrator_takes_the_place_of_its_scales(cli, tmp_path, monkeypatch):
    """The calibrator itself is replaced by one that knows a single tensor: it cannot run here."""
    import numpy as np

    from trtopt.calibrate.table import read_table, write_cache
    from trtopt.types import CalibrationTable

    seen: list[tuple[int, ...]] = []

    def calibrate(trt: object, request: apart.Native, emit: object) -> None:
        with np.load(request.samples) as archive:
            seen.extend(array.shape for array in archive.values())
        write_cache(CalibrationTable(method="native", scales={"input": 0.125, "other": 1.0}), Path(request.out))

    monkeypatch.setattr(apart, "native", calibrate)
    monkeypatch.setattr("trtopt.commands.checks.native", lambda plan: None)
    flags = ["--method", "native", "--samples", "16", "--no-guard", "--no-compare", "--backend", "onnxruntime"]
    done = cli("convert", DIGITS, "-p", "int8", "--calib", CALIB, *flags, "--no-equalization", "-o", tmp_path)
    assert done.code == 0, done.err
    assert seen == [(16, 1, 28, 28)]
    table = read_table(tmp_path / "calibration.json")
    assert table.method == "native"
    assert "other" not in table.scales
    assert "scales are those of" in done.out


def test_batches_are_of_one_size_and_have_samples_from_all_over_the_data_set():
    import numpy as np

    from trtopt.stages.native import _groups

    feeds = [{"x": np.full((1, 2), i)} for i in range(10)] + [{"x": np.zeros((1, 3))}]
    batches = [[int(feed["x"][0, 0]) for feed in group] for group in _groups(feeds, 4)]
    assert batches == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert _groups(feeds, 1) == [[feed] for feed in feeds[:-1]]
