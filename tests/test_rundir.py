"""Tests of the default run directory: one per source, for all commands and spellings of a path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from support import Done, save

from trtopt import rundir
from trtopt.errors import StoreError
from trtopt.events import silent
from trtopt.export.source import Source
from trtopt.store import open_store

Cli = Callable[..., Done]
FP16 = ("-p", "fp16", "--data", "data.npy", "--backend", "onnxruntime", "--format", "json")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a working directory with `a/model.onnx` and `b/model.onnx`, which differ, and samples for both."""
    for name in list(os.environ):
        if name.startswith("TRTOPT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for seed, folder in enumerate("ab"):
        net(folder, seed)
    np.save("data.npy", np.random.default_rng(2).normal(size=(8, 16)).astype(np.float32))
    return tmp_path


def net(folder: str, seed: int) -> Path:
    """Write `model.onnx`, a product with random weights."""
    Path(folder).mkdir(exist_ok=True)
    weight = numpy_helper.from_array(np.random.default_rng(seed).normal(size=(16, 4)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    return save(Path(folder, "model.onnx"), nodes, [weight], ("n", 16), ("n", 4))


def ran_in(done: Done) -> Path:
    """Return the run directory that a report names."""
    assert done.code == 0, done.err
    return Path(json.loads(done.out)["run_dir"])


def source(path: str) -> rundir.DefaultDir:
    return rundir.of_source(Source(kind="onnx", text=path), "fp16")


def test_another_model_of_the_same_name_gets_a_directory_of_its_own(cli: Cli) -> None:
    first = ran_in(cli("convert", "a/model.onnx", *FP16))
    before = (first / "typed.onnx").read_bytes()
    second = ran_in(cli("convert", "b/model.onnx", *FP16))
    assert first == Path("trtopt-out/model/fp16")
    assert second.match("trtopt-out/model-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]/fp16")
    assert (first / "typed.onnx").read_bytes() == before
    assert (second / "typed.onnx").read_bytes() != before
    assert ran_in(cli("convert", "b/model.onnx", *FP16)) == second


def test_a_new_version_of_a_model_replaces_its_run(cli: Cli) -> None:
    first = ran_in(cli("convert", "a/model.onnx", *FP16))
    before = (first / "typed.onnx").read_bytes()
    net("a", 3)
    assert ran_in(cli("convert", "a/model.onnx", *FP16)) == first
    assert (first / "typed.onnx").read_bytes() != before


def test_every_spelling_of_a_path_is_one_source(here: Path) -> None:
    Path("linked").symlink_to("a")
    Path("c").mkdir()
    Path("c/model.onnx").symlink_to("../a/model.onnx")
    spellings = ["a/model.onnx", "./b/../a/model.onnx", str(here / "a/model.onnx"), "linked/model.onnx", "c/model.onnx"]
    assert {rundir.claimed(source(path)) for path in spellings} == {Path("trtopt-out/model/fp16")}


def test_a_project_that_was_moved_keeps_its_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = [rundir.claimed(source(path)) for path in ("a/model.onnx", "b/model.onnx")]
    moved = shutil.copytree(here, here / "moved")
    monkeypatch.chdir(moved)
    assert [rundir.claimed(source(path)) for path in ("a/model.onnx", "b/model.onnx")] == owned


def test_a_model_keeps_its_directory_when_another_ones_is_deleted() -> None:
    rundir.claimed(source("a/model.onnx"))
    second = rundir.claimed(source("b/model.onnx"))
    shutil.rmtree("trtopt-out/model")
    assert rundir.claimed(source("b/model.onnx")) == second


def test_a_run_of_an_earlier_version_goes_to_the_first_source() -> None:
    Path("trtopt-out/model/fp16").mkdir(parents=True)
    assert rundir.claimed(source("a/model.onnx")) == Path("trtopt-out/model/fp16")
    assert rundir.claimed(source("b/model.onnx")) != Path("trtopt-out/model/fp16")


def test_a_directory_with_such_a_digest_may_be_taken_already() -> None:
    rundir.claimed(source("a/model.onnx"))
    second = rundir.claimed(source("b/model.onnx")).parent
    shutil.rmtree(second)
    net(second.name, 4).rename(f"{second.name}.onnx")
    rundir.claimed(source(f"{second.name}.onnx"))
    third = rundir.claimed(source("b/model.onnx")).parent
    assert third.name.startswith(second.name)
    assert third != second


def test_a_directory_that_is_named_is_used_as_it_is(cli: Cli) -> None:
    for model in ("a/model.onnx", "b/model.onnx"):
        assert ran_in(cli("convert", model, *FP16, "-o", "run")) == Path("run")
    assert not Path("trtopt-out").exists()
    assert not Path("run/source.txt").exists()


def test_a_rejected_run_claims_no_directory(cli: Cli) -> None:
    assert cli("convert", "a/model.onnx", "-p", "int8").code == 2
    assert cli("compare", "a/model.onnx", "nowhere", "--data", "data.npy").code == 2
    assert cli("bench", "nowhere").code == 2
    assert not Path("trtopt-out").exists()


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_where_nothing_can_be_written_a_run_is_refused(kind: str, cli: Cli) -> None:
    if kind == "file":
        Path("trtopt-out").write_text("")
    else:
        Path("trtopt-out").symlink_to("/proc/nowhere")
    done = cli("convert", "a/model.onnx", *FP16)
    assert done.code == 2
    assert "cannot write to trtopt-out" in json.loads(done.out)["error"]["message"]
    assert "cannot write to trtopt-out" in done.err


def test_the_store_says_so_too_when_the_owner_cannot_be_read() -> None:
    Path("trtopt-out/model/source.txt").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot write to trtopt-out"), open_store(source("a/model.onnx"), silent):
        pass


def test_two_processes_at_once_do_not_meet_in_one_directory(here: Path) -> None:
    program = [sys.executable, "-m", "trtopt", "convert"]
    runs = [
        subprocess.Popen([*program, f"{folder}/model.onnx", *FP16], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for folder in "ab"
    ]
    ended = [(*run.communicate(), run.returncode) for run in runs]
    folders = {ran_in(Done(code, out.decode(), err.decode())) for out, err, code in ended}
    assert len(folders) == 2
    assert Path("trtopt-out/model/fp16") in folders


def test_many_first_runs_at_once_get_a_directory_each(here: Path) -> None:
    count = 12
    code = (
        "import sys; from trtopt import rundir; from trtopt.export.source import Source; sys.stdin.readline();"
        "print(rundir.claimed(rundir.of_source(Source(kind='onnx', text=sys.argv[1]), 'fp16')))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"{index}/model.onnx"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    for run in runs:  # all processes wait for this line, and start at once
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    assert len({run.communicate()[0] for run in runs}) == count


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_conversion_finds_the_table_that_calibrate_left(precision: str, cli: Cli) -> None:
    rundir.claimed(source("a/model.onnx"))  # so that b has a digest in its name
    done = cli("calibrate", "b/model.onnx", "--calib", "data.npy", "-p", precision, "--method", "minmax")
    assert done.code == 0, done.err
    table = Path(done.out.splitlines()[1])
    assert table.is_file()
    convert = ("convert", "b/model.onnx", "-p", precision, "--calib", "data.npy", "--method", "minmax")
    assert ran_in(cli(*convert, "--no-compare", "--backend", "onnxruntime", "--format", "json")) == table.parent
    stages = json.loads((table.parent / "report.json").read_text())["stages"]
    assert {stage["name"]: stage["status"] for stage in stages}["calibrate"] == "cached"


def test_a_factory_is_its_text_whatever_its_module_is_called(cli: Cli) -> None:
    def place(text: str) -> Path:
        return rundir.claimed(rundir.of_source(Source(kind="factory", text=text), "int8"))

    assert place("nets:resnet") == Path("trtopt-out/resnet/int8")
    assert place("other.nets:resnet") not in (place("nets:resnet"), Path("trtopt-out/nets/int8"))


def test_a_saved_model_is_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(text: str) -> Path:
        return rundir.claimed(rundir.of_source(Source(kind="saved_model", text=text), "int8"))

    Path("x/mobilenet.v2").mkdir(parents=True)
    assert place("x/mobilenet.v2") == place("x/mobilenet.v2/") == Path("trtopt-out/mobilenet.v2/int8")
    assert place("y/mobilenet.v2") != place("x/mobilenet.v2")


def test_a_run_is_not_inside_its_source() -> None:
    Path("trtopt-out/mobilenet").mkdir(parents=True)
    saved_model = Source(kind="saved_model", text="trtopt-out/mobilenet")
    assert rundir.claimed(rundir.of_source(saved_model, "int8")).match("trtopt-out/mobilenet-*/int8")
    assert not list(Path("trtopt-out/mobilenet").iterdir())


def test_an_exported_model_shares_its_directory_with_its_export() -> None:
    assert rundir.claimed(rundir.of_export(Path("a/model.onnx"))) == Path("trtopt-out/model/export")
    assert rundir.claimed(source("a/model.onnx")) == Path("trtopt-out/model/fp16")
    assert (
        rundir.claimed(rundir.of_export(Path("b/model.onnx"))).parent == rundir.claimed(source("b/model.onnx")).parent
    )


def test_comparisons_of_models_of_the_same_name_are_kept_apart(cli: Cli) -> None:
    data = ("--data", "data.npy", "--format", "json", "--gate", "sqnr=20")
    places = []
    for model in ("a/model.onnx", "b/model.onnx"):
        run = ran_in(cli("convert", model, *FP16))
        places += [ran_in(cli("compare", model, candidate, *data)) for candidate in (run, run / "typed.onnx", model)]
    assert places[0] == Path("trtopt-out/compare/model/fp16")
    assert len(set(places)) == len(places)
    assert ran_in(cli("compare", "b/../a/model.onnx", "trtopt-out/model/fp16/", *data)) == places[0]


def test_comparisons_with_candidates_of_the_same_name_are_kept_apart() -> None:
    def place(*candidates: str) -> Path:
        return rundir.claimed(rundir.of_comparison(Path("a/model.onnx"), [Path(each) for each in candidates]))

    groups = [("x/int8",), ("y/int8",), ("x/int8", "y/int8"), ("x/int8", "z/int8"), (".",), ("..",)]
    places = [place(*group) for group in groups]
    assert places[0] == Path("trtopt-out/compare/model/int8")
    assert places[2] == Path("trtopt-out/compare/model/2-candidates")
    assert len(set(places)) == len(groups)
    assert {each.parent for each in places} == {Path("trtopt-out/compare/model")}


def test_benchmarks_of_targets_of_the_same_name_are_kept_apart(cli: Cli) -> None:
    quick = ("--batch", "1", "--seconds", "0.01", "--device", "cpu", "--format", "json")
    places = [ran_in(cli("bench", f"{folder}/model.onnx", *quick)) for folder in "ab"]
    assert places[0] == Path("trtopt-out/bench/model")
    assert places[1].parent == places[0].parent
    assert places[1] != places[0]


def test_a_model_that_is_called_like_a_command_keeps_out_of_its_reports() -> None:
    assert rundir.claimed(rundir.of_bench([Path("x/fp16")])) == Path("trtopt-out/bench/fp16")
    assert rundir.claimed(source("bench.onnx")).match("trtopt-out/bench-*/fp16")
    assert rundir.claimed(source("compare.onnx")) == Path("trtopt-out/compare/fp16")
    assert not rundir.claimed(rundir.of_comparison(Path("m.onnx"), [Path("c")])).is_relative_to("trtopt-out/compare")
