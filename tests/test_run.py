"""The values that the stages of one run share."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtopt.engine.cuda import driver
from trtopt.engine.cuda.driver import Driver, Gpu
from trtopt.errors import EnvironmentUnableError
from trtopt.events import StageUnavailable, silent
from trtopt.run import environment, load, open_run
from trtopt.types import Report


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Driver(version="1", gpus=(Gpu(name="NVIDIA T4", compute_capability="7.5", memory_bytes=1),))
    monkeypatch.setattr(driver, "has_gpu", lambda: True)
    monkeypatch.setattr(driver, "read_driver", lambda: found)


def test_a_device_that_is_looked_for_is_another_place_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(driver, "has_gpu", lambda: False)
    with open_run(tmp_path, silent, "auto") as run:
        assert run.place == "cpu"
        request.getfixturevalue("gpu")
        assert run.place == "auto: NVIDIA T4"


@pytest.mark.usefixtures("gpu")
def test_the_environment_names_the_gpu_its_driver_and_the_libraries_that_compute() -> None:
    found = environment()
    assert (found["gpu"], found["driver"]) == ("NVIDIA T4", "1")
    assert {"numpy", "numba", "scipy", "onnx-ir"} <= found.keys()


def test_warnings_and_stages_of_the_run_are_in_its_report(tmp_path: Path) -> None:
    events: list[object] = []
    with open_run(tmp_path, events.append) as run:
        run.warn("careful")
        run.skip("compare", "--no-compare")
        run.unavailable("build", EnvironmentUnableError("no GPU"))
        run.finish(Report(command="convert", verdict="unchecked", model="m"))
    report = load(tmp_path)
    assert report.warnings == ("careful",)
    assert [(stage.name, stage.status) for stage in report.stages] == [("compare", "skipped"), ("build", "unavailable")]
    assert report.run_dir == tmp_path
    assert StageUnavailable("build", "no GPU") in events
