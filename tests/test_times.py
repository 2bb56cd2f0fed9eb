"""The timing caches in a run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtopt.commands.clean import recorded_files
from trtopt.times import cache_name, is_own, own


@pytest.mark.parametrize(
    "name", ["timing-h100.cache", "timing-0123456789ab.cache.old", "mine.cache", "calibration.cache"]
)
def test_a_file_of_the_user_is_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert not is_own(tmp_path / name)
    assert own(tmp_path) == []


def test_each_gpu_has_a_cache_of_its_own(tmp_path: Path) -> None:
    names = {cache_name({"gpus": gpu}) for gpu in ("H100", "H200")}
    assert len(names) == 2
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in own(tmp_path)} == names


def test_a_folder_that_trtopt_did_not_write_has_nothing_to_remove(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web application"}')
    (tmp_path / cache_name({})).touch()
    assert recorded_files(tmp_path) == ()
