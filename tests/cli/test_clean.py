"""`trtopt clean` lists run directories and removes what their manifests list, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import DIGITS, EVAL, Done

Cli = Callable[..., Done]
RUN = Path("trtopt-out/model/fp16")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Enter a folder with one run."""
    monkeypatch.chdir(tmp_path)
    assert cli("convert", DIGITS, "--data", EVAL, "--samples", "20", "--backend", "onnxruntime", "-q").code == 0


def test_it_lists_and_removes_nothing_without_yes(cli: Cli) -> None:
    before = sorted(Path().rglob("*"))
    done = cli("clean")
    assert done.code == 0
    first, last = done.out.splitlines()
    assert "MB" in first or "kB" in first
    assert str(RUN) in first
    assert last.endswith("in 1 run directories; add --yes to remove it")
    assert sorted(Path().rglob("*")) == before


def test_with_yes_it_removes_the_run_and_keeps_what_no_manifest_lists(cli: Cli) -> None:
    (RUN / "notes.txt").write_text("mine")
    Path("trtopt-out/mine.onnx").write_bytes(DIGITS.read_bytes())
    assert cli("clean", "--yes").out.splitlines()[-1].startswith("removed ")
    left = {str(path) for path in Path("trtopt-out").rglob("*") if path.is_file() and path.name[0] != "."}
    assert left == {str(RUN / "notes.txt"), "trtopt-out/mine.onnx", "trtopt-out/model/source.txt"}


def test_a_forged_manifest_reaches_no_file_outside(cli: Cli) -> None:
    Path("precious").write_text("mine")
    manifest = json.loads((RUN / "manifest.json").read_text())
    manifest["rendered"]["../../../precious"] = ["", ""]
    (RUN / "manifest.json").write_text(json.dumps(manifest))
    assert cli("clean", "--yes").code == 0
    assert Path("precious").read_text() == "mine"


def test_a_folder_without_runs_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").write_text('{"stages": {}}')
    assert cli("clean", "data", "--yes").out == "removed 0 B in 0 run directories\n"
    assert (tmp_path / "data/manifest.json").exists()
    assert cli("clean", "nowhere").code == 2
