"""Progress of a stage that takes long."""

import sys
import time

import pytest

from trtopt.cli import console
from trtopt.events import Progress, StageFinished, StageStarted


@pytest.fixture(autouse=True)
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass in 20 ms."""
    monkeypatch.setattr(console, "_SILENT_SECONDS", 0.02)
    monkeypatch.delenv("CI", raising=False)


def printed(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """Return what was printed on stderr until `text` was."""
    found, until = "", time.monotonic() + 10
    while text not in found and time.monotonic() < until:
        found += capsys.readouterr().err
        time.sleep(0.01)
    return found


def test_without_bars_a_line_tells_which_stage_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Narrator() as emit:
        emit(StageStarted("build"))
        assert "… build " in printed(capsys, "build")
        emit(Progress("build", 3, 8, "layers timed"))
        assert "s  3 of 8, layers timed\n" in printed(capsys, "layers")
        emit(StageStarted("fault"))
        emit(Progress("fault", 4, 0, "builds"))
        assert "… fault " in (line := printed(capsys, "builds"))
        assert "s  4, builds\n" in line
        emit(StageFinished("fault", 20.0, "nothing"))
        emit(StageFinished("build", 200.0, "model.engine"))
        time.sleep(0.05)
        assert capsys.readouterr().err.splitlines()[-1].split() == ["✓", "build", "200.00", "s", "model.engine"]


@pytest.mark.parametrize("quiet", [False, True])
def test_beside_a_bar_and_with_quiet_there_is_no_such_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: not quiet, raising=False)
    with console.Narrator(quiet=quiet) as emit:
        emit(StageStarted("build"))
        time.sleep(0.2)
    assert "…" not in capsys.readouterr().err
