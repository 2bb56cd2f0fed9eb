"""Speed as a part of a conversion's verdict, with toy engines of chosen times."""

import importlib
import json

import pytest
from engine.toy import TIMES, Toy, install
from support import CALIB, DIGITS, EVAL

import trtopt.engine.tensorrt as backend
from trtopt.types import EngineLayer

FAST = {"fp32": 3.0, "fp16": 2.0, "int8": 1.0}
SLOW = {"fp32": 3.0, "fp16": 2.0, "int8": 2.5}


def convert(cli, folder, *more, precision="int8"):
    data = ["--calib", CALIB, "--data", EVAL, "--samples", "32"]
    quick = ["--method", "minmax", "--no-guard", "--no-equalization"] if precision == "int8" else []
    shape = ["--shape", "input=1x1x28x28:8x1x28x28:16x1x28x28"]
    return cli("convert", DIGITS, "-p", precision, *data, *quick, *shape, "-o", folder, *more)


def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(importlib.import_module("trtopt.stages.speed"), "SECONDS", 0.01)
    return install(monkeypatch, Toy(ms=dict(FAST)))


def test_the_engine_is_timed_beside_fp16_and_fp32(cli, toy, tmp_path):
    done = convert(cli, tmp_path)
    assert done.code == 0
    assert toy.builds == ["int8", "fp16", "fp32"]
    found = report(tmp_path)["benchmark"]
    assert [target["name"] for target in found["targets"]] == ["FP16", "FP32", "INT8"]
    assert {timing["batch"] for timing in found["timings"]} == {1, 8}
    assert "1.000 ms at batch 8 (2.00x FP16)" in done.err
    assert "does not pay" not in done.out


def test_the_layers_of_the_engine_are_timed_at_the_largest_batch(cli, toy, tmp_path):
    toy.layers = (
        EngineLayer(name="conv", type="CaskConvolution", precision="int8", tactic="k", nodes=("/0/Conv",)),
        EngineLayer(name="copy", type="Reformat", precision="", tactic="", apart="reformat"),
    )
    done = convert(cli, tmp_path)
    assert report(tmp_path)["benchmark"]["layers"] == {"batch": 8, "ms": {"conv": 1.0, "copy": 3.0}}
    told = "layer times {} layers that did not fuse take 75.0 % of the time of all layers at batch 8: reformat 75.0 %"
    assert told.format("0.00 s") in " ".join(done.err.split())
    assert "timed one by one at batch 8" in (tmp_path / "report.html").read_text()
    assert told.format("cached") in " ".join(convert(cli, tmp_path).err.split())


LAYERS = (EngineLayer(name="conv", type="CaskConvolution", precision="int8", tactic="k", nodes=("/0/Conv",)),)


def test_layers_that_cannot_be_timed_are_a_warning_and_are_tried_again(cli, toy, tmp_path, monkeypatch):
    toy.layers = LAYERS

    def fails(*_):
        raise backend.EnvironmentUnableError("the GPU is busy")

    monkeypatch.setattr(backend, "layer_times", fails)
    done = convert(cli, tmp_path)
    assert done.code == 0
    assert "the layers of the engine are not timed: the GPU is busy" in " ".join(done.out.split())
    assert report(tmp_path)["benchmark"]["timings"]
    monkeypatch.setattr(backend, "layer_times", toy.layer_times)
    convert(cli, tmp_path)
    assert report(tmp_path)["benchmark"]["layers"]["ms"] == {"conv": 1.0}


def test_a_profiler_that_names_other_layers_than_the_inspector_is_a_warning(cli, toy, tmp_path, monkeypatch):
    toy.layers = LAYERS
    monkeypatch.setattr(backend, "layer_times", lambda *_: {"conv": [0.8], "something else": [0.2]})
    done = convert(cli, tmp_path)
    assert "TensorRT's profiler names other layers than its engine inspector" in " ".join(done.out.split())
    assert report(tmp_path)["benchmark"]["layers"] is None


def test_an_engine_whose_layers_are_not_known_is_not_profiled(cli, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "layer_times", lambda *_: pytest.fail("it is profiled"))
    assert convert(cli, tmp_path).code == 0


def test_loading_is_timed_and_a_run_with_copies_is_split(cli, toy, tmp_path):
    convert(cli, tmp_path)
    found = report(tmp_path)["benchmark"]
    assert all(target["load"] > 0 for target in found["targets"])
    parts = [timing["parts"] for timing in found["timings"] if timing["target"] == "INT8" and timing["copies"]]
    assert parts == [{"copy_in": 0.1, "compute": 1.0, "copy_out": 0.1}] * 2


def test_int8_that_is_not_faster_is_told(cli, toy, tmp_path):
    toy.ms.update(SLOW)
    done = convert(cli, tmp_path)
    assert done.code == 0
    assert "INT8 does not pay at batch 1: 2.5 ms, 0.8 times as fast as FP16" in " ".join(done.out.split())


@pytest.mark.parametrize(("gate", "code"), [("latency_mean@8=10000ms", 0), ("speedup@8=100x", 1)])
def test_a_gate_on_speedup_decides(cli, toy, tmp_path, gate, code):
    done = convert(cli, tmp_path, "--gate", f"cosine=0.9,{gate}")
    assert done.code == code, done.err
    gates = report(tmp_path)["benchmark"]["gates"]
    assert [each["metric"] for each in gates] == [gate.partition("@")[0]]


def test_16_bits_are_compared_with_fp32(cli, toy, tmp_path):
    convert(cli, tmp_path, precision="fp16")
    assert [target["name"] for target in report(tmp_path)["benchmark"]["targets"]] == ["FP32", "FP16"]


def test_nothing_is_built_and_timed_a_second_time(cli, toy, tmp_path):
    convert(cli, tmp_path)
    assert convert(cli, tmp_path, "--gate", "latency_mean=10000ms").code == 0
    assert len(toy.builds) == 3


def test_no_speed_times_nothing(cli, toy, tmp_path):
    assert convert(cli, tmp_path, "--no-speed").code == 0
    assert toy.builds == ["int8"]
    assert convert(cli, tmp_path, "--no-speed", "--gate", "speedup=1.2x").code == 2


def test_an_alternative_that_cannot_be_built_is_left_out(cli, toy, tmp_path):
    toy.refused = {"fp32"}
    done = convert(cli, tmp_path)
    assert done.code == 0
    assert "FP32 is not timed beside the engine: no engine of this precision" in " ".join(done.out.split())
    assert [target["name"] for target in report(tmp_path)["benchmark"]["targets"]] == ["FP16", "INT8"]


def test_an_engine_that_cannot_be_timed_is_told_and_judged_all_the_same(cli, toy, tmp_path, monkeypatch):
    def opened(engine, *, graphs, streams=1):
        if graphs:  # as it is opened to be timed
            raise backend.EnvironmentUnableError("the GPU is busy")
        return toy.open(engine, graphs=graphs)

    monkeypatch.setattr(backend, "open", opened)
    done = convert(cli, tmp_path)
    assert done.code == 0
    assert "the engine is not timed: the GPU is busy" in " ".join(done.out.split())
    assert report(tmp_path)["comparison"]["gates"]
    assert report(tmp_path)["benchmark"] is None


def test_an_engine_that_cannot_be_opened_where_it_should_run_is_not_taken_for_right(cli, toy, tmp_path, monkeypatch):
    def opened(engine, *, graphs, streams=1):
        raise backend.EnvironmentUnableError("cuda-python is missing")

    monkeypatch.setattr(backend, "open", opened)
    done = convert(cli, tmp_path, "--no-speed", "--gate", "cosine=0.9")
    assert done.code == 4
    assert "the engine is not run: cuda-python is missing" in " ".join(done.out.split())
    gates = {gate["metric"]: gate["verdict"] for gate in report(tmp_path)["comparison"]["gates"]}
    assert (gates["cosine"], gates["engine"]) == ("pass", "inconclusive")
    monkeypatch.setattr(backend, "host", lambda: None)  # without a GPU the graph is the evidence, as the report says
    assert convert(cli, tmp_path / "no GPU", "--no-speed", "--gate", "cosine=0.9").code == 0


def test_without_a_gpu_nothing_is_timed_and_a_gate_is_inconclusive(cli, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "host", lambda: None)
    assert convert(cli, tmp_path / "a").code == 0
    assert report(tmp_path / "a")["benchmark"] is None
    done = convert(cli, tmp_path / "b", "--gate", "cosine=0.9,speedup=1.2x")
    assert done.code == 4
    assert "does not run on this machine" in " ".join(done.out.split())


def test_another_build_that_is_right_is_taken(cli, toy, tmp_path):
    toy.misled = {1, 2}
    done = convert(cli, tmp_path, "--no-speed")
    assert done.code == 0, done.out
    assert "the first engine did not compute its graph, and is replaced" in " ".join(done.out.split())
    found = report(tmp_path)
    assert found["fault"] is None
    assert [gate["verdict"] for gate in found["comparison"]["gates"] if gate["metric"] == "engine"] == ["pass"]
    assert [stage["name"] for stage in found["stages"]].count("build") == 1
    assert len(toy.builds) == 3


def test_a_cached_run_still_says_that_the_first_engine_was_wrong(cli, toy, tmp_path):
    toy.misled = {1}
    first, second = convert(cli, tmp_path, "--no-speed"), convert(cli, tmp_path, "--no-speed")
    assert len(toy.builds) == 2
    warned = [" ".join(done.out.split()).partition("warning: the first engine did not")[2] for done in (first, second)]
    assert warned[0]
    assert warned[0].partition("report:")[0] == warned[1].partition("report:")[0]
    assert convert(cli, tmp_path, "--no-speed", "--force").code == 0
    assert report(tmp_path)["warnings"] == []


def test_the_gate_of_the_user_decides_whether_a_build_is_right(cli, toy, tmp_path):
    toy.misled = set(range(99))
    assert convert(cli, tmp_path, "--no-speed", "--gate", "engine=999dB").code == 1  # the other gates fail
    assert len(toy.builds) == 1


def test_an_engine_that_cannot_be_built_again_stays_with_its_verdict(cli, toy, tmp_path, monkeypatch):
    toy.misled = {1}

    def build(order, out, *, emit):
        if toy.builds:
            raise backend.EnvironmentUnableError("the GPU is busy")
        return toy.build(order, out, emit=emit)

    monkeypatch.setattr(backend, "build", build)
    done = convert(cli, tmp_path, "--no-speed")
    assert done.code == 1
    assert "the engine could not be built again: the GPU is busy" in " ".join(done.out.split())
    assert (tmp_path / "model.engine").exists()
    assert report(tmp_path)["verdict"] == "fail"
    assert "build" in [stage["name"] for stage in report(tmp_path)["stages"]]


def test_a_dry_run_after_a_wrong_engine_deletes_nothing(cli, toy, tmp_path):
    toy.wrong = set(range(99))
    convert(cli, tmp_path, "--no-speed")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    done = convert(cli, tmp_path, "--no-speed", "--dry-run")
    assert done.code == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert "build" in done.out


def test_a_wrong_engine_of_a_quantized_model_is_replaced(cli, toy, tmp_path):
    convert(cli, tmp_path / "first", "--no-speed", "--rest", "fp32")
    toy.misled = {2}
    given = tmp_path / "first/typed.onnx"
    done = cli(
        "convert", given, "-p", "int8", "--data", EVAL, "--samples", "32", "--no-speed", "-o", tmp_path / "second"
    )
    assert done.code == 0, done.err
    assert len(toy.builds) == 3


def test_all_engines_of_a_run_are_built_from_one_timing_cache(cli, toy, tmp_path):
    convert(cli, tmp_path)
    assert toy.caches == [tmp_path / TIMES] * 3


def test_a_timing_cache_of_the_user_is_used_and_kept(cli, toy, tmp_path):
    toy.misled = {1}
    mine = tmp_path / "mine.cache"
    assert convert(cli, tmp_path / "run", "--no-speed", "--timing-cache", mine).code == 1
    assert {*toy.caches} == {mine}
    assert mine.read_text() == "1"


def test_without_the_results_of_earlier_runs_the_kernels_are_timed_again(cli, toy, tmp_path):
    convert(cli, tmp_path, "--no-speed")
    assert convert(cli, tmp_path, "--no-speed", "--force").code == 0
    assert (tmp_path / TIMES).read_text() == "2"


def test_clean_removes_the_timing_cache(cli, toy, tmp_path):
    convert(cli, tmp_path, "--no-speed")
    assert cli("clean", tmp_path, "--yes").code == 0
    assert not (tmp_path / TIMES).exists()


def test_a_wrong_engine_is_built_again_by_the_next_run(cli, toy, tmp_path):
    toy.wrong = {1, 2, 3, 4, 5}  # the first build, those with new times, and that of the search
    first = convert(cli, tmp_path, "--no-speed")
    assert first.code == 1
    builds = len(toy.builds)
    second = convert(cli, tmp_path, "--no-speed")
    assert second.code == 0, second.out
    assert "the engine of the last run did not compute its graph: another one is built" in " ".join(second.out.split())
    assert len(toy.builds) == builds + 1
    assert (tmp_path / TIMES).read_text() == str(builds + 1)
    assert convert(cli, tmp_path, "--no-speed").code == 0
    assert len(toy.builds) == builds + 1


def test_nodes_that_are_kept_after_a_wrong_engine_are_tried_with_its_kernels(cli, toy, tmp_path):
    toy.wrong = {1, 2, 3, 4, 5}
    assert convert(cli, tmp_path, "--no-speed").code == 1
    node = next(each["node"] for each in report(tmp_path)["typed"]["decisions"] if each["precision"] == "int8")
    assert convert(cli, tmp_path, "--no-speed", "--keep", node).code == 0
    assert (tmp_path / TIMES).read_text() == "4"  # the last build whose kernels were timed
