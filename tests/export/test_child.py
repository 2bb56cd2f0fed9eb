"""The child process that runs a framework: its errors, its crashes, and that nothing else of it reaches trtopt."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from trtopt.errors import MissingDependencyError, ModelError
from trtopt.export import child
from trtopt.export.request import Example, Request
from trtopt.export.source import Source
from trtopt.types import ShapeRange

HERE = Path(__file__).parent
SHAPE = (2, 3, 8, 8)
IMAGE = Example(name="image", dtype="float32", shape=ShapeRange(name="image", min=SHAPE, opt=SHAPE, max=SHAPE))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


def factory_request(name: str) -> Request:
    return Request(source=Source(kind="factory", text=f"frameworks:{name}"), examples=(IMAGE,))


def test_the_child_exports_and_runs_and_its_log_does_not_reach_trtopt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exported = child.export(factory_request("noisy"), tmp_path, 120)
    ran, outputs = child.run(factory_request("noisy"), [{"image": np.ones(SHAPE, np.float32)}] * 2, tmp_path, 120)
    assert exported.framework == ran
    assert ran.startswith("PyTorch 2.")
    assert [[array.shape for array in run] for run in outputs] == [[(2, 5), (2, 8)]] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("killed", "was killed: most likely it ran out of memory"),
        ("leaving", "crashed: exit code 0"),
        ("failing", "failed: ValueError: no such size: 7"),
    ],
)
def test_a_crash_of_the_child_is_a_model_error(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        child.export(factory_request(name), tmp_path, 120)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_the_system_kills_is_a_model_error(tmp_path: Path) -> None:
    """Kill the child from outside at an arbitrary moment, as the kernel does when memory runs out."""
    (tmp_path / "saved_model.pb").write_bytes(b"")
    work = tmp_path / "work"
    work.mkdir()
    before = set(psutil.Process().children())

    def kill() -> None:
        while not (started := set(psutil.Process().children()) - before):
            time.sleep(0.05)
        started.pop().kill()

    killer = threading.Thread(target=kill)
    killer.start()
    message = r"was killed: most likely it ran out of memory.*Export to ONNX on a machine with more"
    with pytest.raises(ModelError, match=message):
        child.export(Request(source=Source(kind="saved_model", text=str(tmp_path))), work, 120)
    killer.join()


def test_a_framework_that_hangs_is_ended(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"took longer than 8 s. Allow more time with --export-timeout"):
        child.export(factory_request("hanging"), tmp_path, 8)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("kind", "package", "extra"), [("factory", "torch", "torch"), ("saved_model", "tensorflow", "tensorflow")]
)
def test_a_missing_framework_says_what_to_install(
    kind: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
    monkeypatch.setenv("PYTHONPATH", str(hidden), prepend=os.pathsep)
    folder = tmp_path / "work"
    folder.mkdir()
    request = Request(source=Source(kind=kind, text="frameworks:small"), examples=(IMAGE,))  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match=re.escape(f"pip install {extra}")) as caught:
        child.export(request, folder, 120)
    assert caught.value.exit_code == 3
