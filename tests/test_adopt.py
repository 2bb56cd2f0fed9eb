"""`trtopt adopt` without a GPU: what is refused, with one line, and nothing is recorded."""

from __future__ import annotations

import pytest
from support import DIGITS

from trtopt.engine.cuda.driver import has_gpu


@pytest.fixture
def run(cli, tmp_path):
    done = cli("convert", DIGITS, "-p", "fp16", "--no-compare", "--target", "jetpack-6", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    return tmp_path / "run"


def test_a_folder_without_a_run_is_refused(cli, tmp_path):
    done = cli("adopt", tmp_path)
    assert done.code == 2
    assert "is not a complete run directory" in done.err
    assert not list(tmp_path.iterdir())


def test_a_run_without_an_engine_names_the_script_that_builds_it(cli, run):
    done = cli("adopt", run)
    assert done.code == 2
    assert f"{run}/model.engine does not exist" in " ".join(done.err.split())
    assert "build.sh" in done.err


def test_an_engine_that_cannot_be_loaded_here_is_not_recorded(cli, run):
    if has_gpu():
        pytest.skip("this machine has a GPU")
    (run / "model.engine").write_bytes(b"ftrt" + bytes(100))
    before = (run / "manifest.json").read_bytes()
    done = cli("adopt", run)
    assert done.code in (2, 3)
    assert len([line for line in done.err.splitlines() if "error" in line]) == 1, done.err
    assert (run / "manifest.json").read_bytes() == before
    assert (run / "model.engine").stat().st_size == 104
