from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from trtopt.errors import DataError, StoreError, UsageError
from trtopt.events import Event, StageCached, StageFinished, Warned, silent
from trtopt.store import open_store, read_result
from trtopt.types import Engine


def engine(folder: Path, content: bytes = b"plan") -> Engine:
    (folder / "model.engine").write_bytes(content)
    return Engine(
        path=folder / "model.engine", digest="d", backend="tensorrt", builder="b", device="g", size_bytes=len(content)
    )


def run(root: Path, key: dict[str, object], content: bytes = b"plan") -> tuple[Engine, list[Event]]:
    events: list[Event] = []
    with open_store(root, events.append) as store:
        return store.stage("build", key, Engine, lambda folder: engine(folder, content), lambda _: "built"), events


def test_a_stage_runs_once_for_the_same_key(tmp_path: Path) -> None:
    first, events = run(tmp_path, {"a": 1})
    assert isinstance(events[-1], StageFinished)
    second, events = run(tmp_path, {"a": 1}, b"never made")
    assert events == [StageCached("build", "built")]
    assert first == second
    assert second.path == tmp_path / "model.engine"
    assert second.path.read_bytes() == b"plan"


def test_a_changed_key_runs_the_stage_again(tmp_path: Path) -> None:
    run(tmp_path, {"a": 1})
    changed, _ = run(tmp_path, {"a": 2}, b"new")
    assert changed.path.read_bytes() == b"new"


def test_files_that_a_stage_no_longer_writes_are_deleted(tmp_path: Path) -> None:
    def large(folder: Path) -> Engine:
        (folder / "model.data").write_bytes(b"weights")
        return engine(folder)

    with open_store(tmp_path, silent) as store:
        store.stage("build", {"a": 1}, Engine, large, lambda _: "built")
        assert (tmp_path / "model.data").exists()
        store.stage("build", {"a": 2}, Engine, engine, lambda _: "built")
    assert not (tmp_path / "model.data").exists()
    assert (tmp_path / "model.engine").exists()


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_changed_or_missing_file_runs_the_stage_again(tmp_path: Path, damage: str) -> None:
    run(tmp_path, {})
    file = tmp_path / "model.engine"
    file.unlink() if damage == "remove" else file.write_bytes(b"other")
    again, events = run(tmp_path, {})
    assert isinstance(events[-1], StageFinished)
    assert again.path.read_bytes() == b"plan"


def test_a_failed_stage_leaves_no_files_and_earlier_results_stay(tmp_path: Path) -> None:
    run(tmp_path, {"a": 1})
    before = sorted(path.name for path in tmp_path.iterdir())

    def fail(folder: Path) -> Engine:
        (folder / "model.engine").write_bytes(b"half")
        raise ValueError("stopped")

    with open_store(tmp_path, silent) as store, pytest.raises(ValueError, match="stopped"):
        store.stage("build", {"a": 2}, Engine, fail, str)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    _, events = run(tmp_path, {"a": 1})
    assert events == [StageCached("build", "built")]


def test_temporary_files_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".tmp-build-x").mkdir()
    (tmp_path / ".tmp-build-x" / "half").write_bytes(b"half")
    (tmp_path / ".tmp-manifest.json").write_text("{")
    run(tmp_path, {})
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 1, "stages": 3}'])
def test_a_damaged_manifest_is_reported_and_every_stage_runs_again(tmp_path: Path, text: str) -> None:
    run(tmp_path, {})
    (tmp_path / "manifest.json").write_text(text)
    _, events = run(tmp_path, {})
    assert isinstance(events[0], Warned)
    assert isinstance(events[-1], StageFinished)


def test_a_result_of_another_shape_runs_the_stage_again(tmp_path: Path) -> None:
    run(tmp_path, {})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["stages"]["build"]["result"] = {"unknown": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    _, events = run(tmp_path, {})
    assert isinstance(events[-1], StageFinished)


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    inside, order = threading.Event(), []

    def slow(folder: Path) -> Engine:
        inside.set()
        time.sleep(0.3)
        order.append("first")
        return engine(folder)

    def first() -> None:
        with open_store(tmp_path, silent) as store:
            store.stage("build", {"n": 1}, Engine, slow, str)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    _, events = run(tmp_path, {"n": 2})
    order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert isinstance(events[0], Warned)
    assert "waiting" in events[0].message


def test_a_path_below_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*a part of the path is a file"):
        run(tmp_path / "file" / "run", {})


def test_a_file_in_place_of_the_directory_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="it is a file"):
        run(tmp_path / "file", {})


def test_a_result_is_read_back_only_while_its_files_are_unchanged(tmp_path: Path) -> None:
    made, _ = run(tmp_path, {})
    assert read_result(tmp_path, "build", Engine) == made
    assert read_result(tmp_path, "prepare", Engine) is None
    (tmp_path / "model.engine").write_bytes(b"other")
    assert read_result(tmp_path, "build", Engine) is None


@pytest.mark.parametrize("file", ["../victim", "/etc/victim", "..", "a/b", ""])
def test_a_manifest_that_lists_files_elsewhere_is_not_trusted(file: str, tmp_path: Path) -> None:
    victim, root = tmp_path / "victim", tmp_path / "run"
    root.mkdir()
    victim.write_text("precious")
    entry = {"key": "k", "inputs": {"typed": "old"}, "files": {file: "0"}, "result": {}, "seconds": 0}
    (root / "manifest.json").write_text(json.dumps({"schema_version": 1, "stages": {"build": entry}}))
    said: list[object] = []
    with open_store(root, said.append) as store:
        store.discard("build", typed="new")
    assert victim.read_text() == "precious"
    assert any("is damaged" in str(event) for event in said)


@pytest.mark.parametrize("entry", [None, 5, [], {}, {"key": 1, "inputs": {}, "files": {}, "result": {}}])
def test_a_malformed_entry_is_a_damaged_manifest(entry: object, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 1, "stages": {"build": entry}}))
    said: list[object] = []
    with open_store(tmp_path, said.append):
        pass
    assert any("is damaged" in str(event) for event in said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    paths: tuple[Path, ...]
    named: Mapping[str, Path]


def test_paths_in_tuples_and_mappings_move_with_the_files(tmp_path: Path) -> None:
    def make(folder: Path) -> Several:
        for name in "ab":
            (folder / name).write_text(name)
        return Several(paths=(folder / "a",), named={"b": folder / "b"})

    for _ in range(2):  # made, and then read from the manifest
        with open_store(tmp_path, silent) as store:
            found = store.stage("several", {}, Several, make, str)
        assert (found.paths[0].read_text(), found.named["b"].read_text()) == ("a", "b")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.ENOSPC])
def test_an_error_about_the_users_files_does_not_blame_the_run_directory(tmp_path: Path, number: int) -> None:
    def fail(folder: Path) -> Engine:
        raise OSError(number, "no", "/data/images/1.png")

    with open_store(tmp_path, silent) as store, pytest.raises(DataError, match=r"/data/images/1\.png: no"):
        store.stage("build", {}, Engine, fail, str)


def test_an_error_in_the_folder_of_the_stage_is_one_of_the_run_directory(tmp_path: Path) -> None:
    def fail(folder: Path) -> Engine:
        raise OSError(errno.ENOSPC, "no space", str(folder / "model.engine"))

    with open_store(tmp_path, silent) as store, pytest.raises(StoreError, match="the disk is full"):
        store.stage("build", {}, Engine, fail, str)


def test_a_report_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(UsageError, match=r"report\.json that trtopt did not write"), open_store(tmp_path, silent):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
