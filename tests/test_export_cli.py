"""`trtopt export`, and `trtopt convert` from a framework's model: the real entry point, and real child processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support import DIGITS, ROOT, Done

FACTORIES = ROOT / "tests/export/frameworks.py"
SHAPE = "image=1x3x8x8:4x3x8x8:8x3x8x8"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a temporary folder with the factories in it."""
    (tmp_path / "nets.py").write_bytes(FACTORIES.read_bytes())
    monkeypatch.chdir(tmp_path)


def images(path: str, name: str = "image") -> str:
    np.savez(path, **{name: np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)})
    return path


def test_export_writes_a_model_and_reports_its_drift(cli: Callable[..., Done]) -> None:
    done = cli("export", "nets:small", "-o", "out/small.onnx", "--shape", SHAPE)
    assert done.code == 0, done.err
    assert "export against the framework on 4 random inputs (seed 0)" in done.out
    assert "PASS: 2/2 gates passed" in done.out
    assert "training mode" in done.out
    session = onnxruntime.InferenceSession("out/small.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.ones((7, 3, 8, 8), np.float32)})[0].shape == (7, 5)
    report = json.loads(Path("trtopt-out/small/export/report.json").read_text())
    assert (report["command"], report["verdict"]) == ("export", "pass")
    assert all(
        output["values"]["sqnr"] == "inf" or output["values"]["sqnr"] > 80 for output in report["parity"]["outputs"]
    )


def test_inputs_are_taken_from_the_data_and_the_check_runs_on_it(cli: Callable[..., Done]) -> None:
    done = cli("export", "nets:small", "-o", "small.onnx", "--data", images("data.npz"))
    assert done.code == 0, done.err
    assert "8 samples of data.npz" in done.out
    assert onnxruntime.InferenceSession("small.onnx").get_inputs()[0].shape == ["batch", 3, 8, 8]


def test_convert_takes_a_factory_and_a_second_run_repeats_only_the_export(cli: Callable[..., Done]) -> None:
    arguments = ("convert", "nets:small", "-p", "fp16", "--data", images("data.npz"), "--backend", "onnxruntime")
    first = cli(*arguments)
    assert first.code == 0, first.err
    assert "export against the framework" in first.out
    assert "drift against FP32" in first.out
    second = cli(*arguments)
    stages = {
        stage["name"]: stage["status"]
        for stage in json.loads(Path("trtopt-out/small/fp16/report.json").read_text())["stages"]
    }
    assert second.code == 0
    # Changes in the factory's code cannot be detected, so it is called again. Its model is the same, so the rest is
    # cached.
    assert stages.pop("export") == "ran"
    assert set(stages.values()) == {"cached"}


def test_a_drift_stops_unless_it_is_allowed(cli: Callable[..., Done]) -> None:
    arguments = ("export", "nets:drifting", "-o", "net.onnx", "--shape", SHAPE)
    stopped = cli(*arguments)
    assert stopped.code == 2
    assert "drifted from PyTorch" in stopped.err
    assert "--allow-export-drift" in stopped.err
    assert not Path("net.onnx").exists()
    allowed = cli(*arguments, "--allow-export-drift")
    assert Path("net.onnx").exists()
    assert "export drift accepted because of --allow-export-drift" in allowed.err
    assert allowed.code == 0
    assert "UNCHECKED: export drift accepted because of --allow-export-drift" in allowed.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nets:small",), "its inputs are image"),
        (("nets:small", "--shape", "image=0x3"), "has a size of 0"),
        (("nets:small", "--shape", "image"), "does not parse"),
        (("nets:small", "--shape", SHAPE, "--dtype", "image=float"), "invalid --dtype image=float"),
        (("nets:small", "--shape", SHAPE, "--dtype", "mask=int64"), "--dtype mask has no shape"),
        (("nets:small", "--shape", SHAPE, "--signature", "a"), "--signature applies only to SavedModel sources"),
        ((str(DIGITS),), "is already ONNX"),
        ((str(DIGITS), "--weights", "w.pt"), "--weights applies only to package.module:factory sources"),
        (("absent.pt2",), "does not exist"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    arguments: tuple[str, ...], said: str, cli: Callable[..., Done]
) -> None:
    done = cli("export", *arguments, "-o", "net.onnx")
    assert done.code == 2
    assert said in done.err
    assert len([line for line in done.err.splitlines() if "error:" in line]) == 1
    assert "Traceback" not in done.err
