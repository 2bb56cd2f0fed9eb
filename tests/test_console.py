"""What a run prints while a stage takes long."""

import pytest

from trtopt.cli import console
from trtopt.events import Progress, StageFinished, StageStarted


def test_a_long_stage_without_a_bar_prints_its_progress_once_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.Narrator() as emit:
        emit(StageStarted("build"))
        for layer in range(8):
            emit(Progress("build", layer, 8, "layers"))
            now += 25.0
        emit(StageFinished("build", 200.0, "model.engine"))
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        ["…", "build", "75.00", "s", "3", "of", "8", "layers"],
        ["…", "build", "150.00", "s", "6", "of", "8", "layers"],
        ["✓", "build", "200.00", "s", "model.engine"],
    ]


def test_a_short_stage_prints_only_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Narrator() as emit:
        emit(StageStarted("build"))
        emit(Progress("build", 1, 2, "layers"))
        emit(StageFinished("build", 1.0, "model.engine"))
    assert len(capsys.readouterr().err.splitlines()) == 1
