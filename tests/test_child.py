"""A function in a process of its own: its answer, its errors, its log and its temporary files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import children
import pytest
from children import Reply, Task

from trtopt.child import DiedError, StoppedError, Terms, call
from trtopt.engine.cuda.backend import CudaError
from trtopt.events import Progress


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder for the temporary files of the parent."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    return True


def test_the_answer_is_typed_and_events_arrive(capfd: pytest.CaptureFixture[str]) -> None:
    events: list[object] = []
    assert call(children.echo, Task(text="é\n"), Terms(emit=events.append)) == Reply(text="é\n")
    assert events == [Progress("child", 1, 2)]
    assert capfd.readouterr() == ("", "")


def test_a_crash_tells_where_it_was_and_keeps_the_log(tmp_path: Path) -> None:
    with pytest.raises(DiedError) as caught:
        call(children.dies, Task(folder=tmp_path))
    died = caught.value
    assert (died.cause, died.at, died.last_line, died.out_of_memory) == ("SIGSEGV", "the middle", "last words", False)
    assert died.log is not None
    assert "last words" in died.log.read_text()
    assert str(died.log) in died.advice


def test_the_temporary_files_of_a_killed_child_are_deleted(tmp_path: Path, logs: Path) -> None:
    with pytest.raises(DiedError) as caught:
        call(children.dies, Task(text="killed", folder=tmp_path))
    assert caught.value.out_of_memory
    assert (tmp_path / "temporary").read_text().startswith(str(logs))
    assert [path for path in logs.iterdir() if path != caught.value.log] == []


def test_an_error_arrives_as_it_was_raised_and_leaves_no_log(logs: Path) -> None:
    with pytest.raises(CudaError, match="the GPU failed: it is tired") as caught:
        call(children.raises, Task(text="known"))
    assert caught.value.fix == "Let it rest"
    assert list(logs.iterdir()) == []


def test_another_exception_is_one_line_and_its_traceback_is_in_the_log() -> None:
    with pytest.raises(DiedError) as caught:
        call(children.raises, Task())
    assert caught.value.raised
    assert caught.value.cause == "ValueError: a size is wrong"
    assert caught.value.log is not None
    assert "Traceback" in caught.value.log.read_text()


def test_the_guard_ends_the_child(tmp_path: Path) -> None:
    def started(_: int) -> str | None:
        return "enough" if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() else None

    with pytest.raises(StoppedError) as caught:
        call(children.waits, Task(folder=tmp_path), Terms(guard=started))
    assert caught.value.reason == "enough"
    assert not is_running(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("grace", [0.0, 10.0])
def test_an_exception_of_the_parent_ends_the_child(tmp_path: Path, grace: float) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(children.waits, Task(folder=tmp_path), Terms(emit=interrupt, grace=grace))
    assert not is_running(int((tmp_path / "pid").read_text()))
