"""Shards of a data set: partial results that merge to what one process makes, bit for bit, and refusals."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from support import CALIB, DIGITS, EVAL, Done, save

from trtopt.codec import encode
from trtopt.commands.calibrate import calibrate, calibrate_shard
from trtopt.commands.compare import compare, compare_shard
from trtopt.commands.convert import convert
from trtopt.commands.merge import merge
from trtopt.commands.predict import predict
from trtopt.commands.sensitivity import sensitivity, sensitivity_shard
from trtopt.engine import BuildPlan
from trtopt.errors import UsageError
from trtopt.plan import ComparePlan, ConvertPlan, DataPlan, MeasurePlan, PredictPlan
from trtopt.shards.partial import read_whole
from trtopt.shards.shard import WHOLE, Shard, parse_shard, shards

Cli = Callable[..., Done]
COUNTS = (1, 2, 4, 7)


@pytest.mark.parametrize("total", [0, 1, 5, 100])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_all_shards_together_are_the_whole(total: int, count: int) -> None:
    parts = [list(shard.of(total)) for shard in shards(count)]
    assert [index for part in parts for index in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "a/b", "1/2/3", "-1/2"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid --shard"):
        parse_shard(text)


def calibration(model: Path, calib: object, run_dir: Path, method: str = "minmax") -> ConvertPlan:
    return ConvertPlan(
        source=model,
        precision="int8",
        run_dir=run_dir,
        calib=DataPlan(source=str(calib)),
        method=method,
        equalization=method == "auto",
        build=BuildPlan(backend="onnxruntime"),
    )


@pytest.mark.parametrize(("method", "counts"), [("auto", (2,)), ("entropy", COUNTS)])
def test_the_table_of_shards_is_that_of_one_process(method: str, counts: tuple[int, ...], tmp_path: Path) -> None:
    whole = calibrate(calibration(DIGITS, CALIB, tmp_path / "whole", method))
    expected = (tmp_path / "whole/calibration.json").read_bytes()
    for count in counts:
        own = calibration(DIGITS, CALIB, tmp_path / str(count), method)
        paths = [calibrate_shard(own, shard) for shard in shards(count)]
        table, folder = merge(list(reversed(paths)), tmp_path / f"merged{count}")
        assert folder == tmp_path / f"merged{count}"
        assert table == whole
        assert (folder / "calibration.json").read_bytes() == expected


def test_masks_of_one_shard_leave_the_table_as_it_is(conv_net: Path, tmp_path: Path) -> None:
    # Samples 2 and 7 hold a mask. With masks, absmax is the edge of a bin in the whole, but exact in another shard.
    values = np.random.default_rng(0).normal(size=(9, 16, 8, 8)).astype(np.float32)
    values[[2, 7], 0, 0, 0] = -1e30
    np.savez(tmp_path / "d.npz", x=values)
    calibrate(calibration(conv_net, tmp_path / "d.npz", tmp_path / "whole"))
    expected = (tmp_path / "whole/calibration.json").read_bytes()
    for count in (3, 10):  # with 10, some shards are empty
        folder = tmp_path / str(count)
        own = calibration(conv_net, tmp_path / "d.npz", folder)
        table, _ = merge([calibrate_shard(own, shard) for shard in shards(count)], folder)
        assert len(table.scales) > 1  # type: ignore[union-attr]
        assert (folder / "calibration.json").read_bytes() == expected


def test_samples_by_index_are_made_by_their_shard_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "indexed_samples_of_shards.py").write_text(
        "import numpy as np\n"
        "made = []\n"
        "class Digits:\n"
        "    digest = 'random digits'\n"
        "    def __len__(self): return 90\n"
        "    def __getitem__(self, i):\n"
        "        made.append(i)\n"
        "        return {'input': np.random.default_rng(i).random((1, 28, 28), np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    plan = calibration(DIGITS, "indexed_samples_of_shards:Digits", tmp_path / "parts")
    whole = calibrate(replace(plan, run_dir=tmp_path / "whole"))
    made = sys.modules["indexed_samples_of_shards"].made
    assert sorted(made) == [0, *range(90)]  # the first one tells the shapes
    paths = []
    for shard in shards(3):
        made.clear()
        paths.append(calibrate_shard(plan, shard))
        assert sorted(made) == [0, *shard.of(90)]
    made.clear()
    assert merge(paths)[0] == whole
    assert made == [0]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    plan = ConvertPlan(
        source=DIGITS,
        precision="int8",
        run_dir=folder,
        calib=DataPlan(source=str(CALIB)),
        compare=False,
        build=BuildPlan(backend="onnxruntime"),
    )
    convert(plan)
    return folder


def comparison(candidate: Path, run_dir: Path, **options: object) -> ComparePlan:
    return ComparePlan(
        baseline=DIGITS, candidates=(candidate,), run_dir=run_dir, data=DataPlan(source=str(EVAL), **options)
    )


@pytest.fixture(scope="module")
def whole_report(int8: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    return compare(comparison(int8, tmp_path_factory.mktemp("report"))).comparison


@pytest.mark.parametrize("count", COUNTS)
def test_the_report_of_shards_is_that_of_one_process(
    count: int, int8: Path, whole_report: object, tmp_path: Path
) -> None:
    paths = [compare_shard(comparison(int8, tmp_path), shard) for shard in shards(count)]
    report, _ = merge(paths, None)
    assert report.comparison == whole_report  # type: ignore[union-attr]
    assert (tmp_path / "report.json").exists()  # where the shards were asked to


def test_groups_and_plain_values_merge_to_the_same_report(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["y"])]
    net = save(tmp_path / "net.onnx", nodes, weights, (4, 3), (4, 5))
    weights[0] = numpy_helper.from_array(numpy_helper.to_array(weights[0]).astype(np.float16).astype(np.float32), "w")
    other = save(tmp_path / "other.onnx", nodes, weights, (4, 3), (4, 5))
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32))

    def plan(name: str) -> ComparePlan:
        data = DataPlan(source=str(tmp_path / "d.npz"))
        return ComparePlan(baseline=net, candidates=(other,), run_dir=tmp_path / name, data=data)

    whole = compare(plan("whole"))
    report, _ = merge([compare_shard(plan("parts"), shard) for shard in shards(3)], tmp_path / "merged")
    assert report.comparison == whole.comparison  # type: ignore[union-attr]


def measurement(run_dir: Path, model: Path = DIGITS, data: Path = EVAL) -> ConvertPlan:
    calib = DataPlan(source=str(CALIB), samples=20)
    own = DataPlan(source=str(data), samples=20)
    return replace(calibration(model, CALIB, run_dir, "mse"), calib=calib, data=own)


def test_the_sensitivity_of_shards_is_that_of_one_process(tmp_path: Path) -> None:
    whole = sensitivity(measurement(tmp_path / "whole")).sensitivity
    assert whole is not None
    assert {group.exact for group in whole.groups} == {True, False}
    for count in COUNTS:  # with 7, some are empty
        paths = [sensitivity_shard(measurement(tmp_path / str(count)), shard) for shard in shards(count)]
        report, _ = merge(list(reversed(paths)), tmp_path / f"merged{count}")
        assert encode(report.sensitivity) == encode(whole)  # type: ignore[union-attr]  # NaN is not equal to itself
        assert (tmp_path / f"merged{count}/report.json").exists()


def prediction(out: Path, shard: Shard = WHOLE, data: Path = EVAL) -> PredictPlan:
    return PredictPlan(run=DIGITS, out=out, data=DataPlan(source=str(data)), answers="raw", shard=shard)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "npz"])
@pytest.mark.parametrize("count", [2, 7])
def test_the_rows_of_shards_are_those_of_one_process(suffix: str, count: int, tmp_path: Path) -> None:
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    predict(prediction(whole))
    paths = [predict(prediction(out, shard)).out for shard in shards(count)]  # with 7, some are empty
    result, _ = merge(paths)
    assert out.read_bytes() == whole.read_bytes()
    assert (result.rows, result.failed) == (1000, 0)  # type: ignore[union-attr]
    assert predict(prediction(out)).rows == 1000  # it is known to be complete


def test_a_shard_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    plan = calibration(DIGITS, CALIB, tmp_path)
    first = calibrate_shard(plan, Shard(1, 2))
    before = first.stat().st_mtime_ns
    assert calibrate_shard(plan, Shard(1, 2)).stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of partial results: both halves, and others that do not belong to them."""
    folder = tmp_path_factory.mktemp("parts")
    values = np.load(EVAL)["input"]
    np.savez(folder / "a.npz", input=values[:40])
    np.savez(folder / "b.npz", input=values[40:80])
    weights = [numpy_helper.from_array(np.ones((784, 10), np.float32), "w")]
    nodes = [helper.make_node("Flatten", ["input"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    net = save(folder / "net.onnx", nodes, weights)
    import onnx

    model = onnx.load(net)
    model.graph.input[0].name = "input"
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], (1, 28, 28), strict=True):
        dim.dim_value = size
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 10
    onnx.save(model, net)

    def shard(name: str, model: Path, data: str, shard: Shard) -> None:
        path = calibrate_shard(calibration(model, folder / data, folder / name), shard)
        path.rename(folder / f"{name}.partial")

    shard("first", DIGITS, "a.npz", Shard(1, 2))
    shard("second", DIGITS, "a.npz", Shard(2, 2))
    shard("other_data", DIGITS, "b.npz", Shard(2, 2))
    shard("other_model", net, "a.npz", Shard(2, 2))
    shard("third_of_3", DIGITS, "a.npz", Shard(3, 3))

    def sensitivity_of(name: str, model: Path, data: str, shard: Shard) -> None:
        path = sensitivity_shard(measurement(folder / name, model, folder / data), shard)
        path.rename(folder / f"{name}.partial")

    sensitivity_of("groups", DIGITS, "a.npz", Shard(1, 2))
    sensitivity_of("groups_of_other_data", DIGITS, "b.npz", Shard(2, 2))
    sensitivity_of("groups_of_other_model", net, "a.npz", Shard(2, 2))
    rows = predict(prediction(folder / "rows.jsonl", Shard(2, 2), folder / "a.npz")).out
    rows.rename(folder / "rows.partial")
    (folder / "text.partial").write_text("text")
    (folder / "cut.partial").write_bytes((folder / "second.partial").read_bytes()[:-30])
    return folder


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("first", "other_model"), "other_model.partial is of another model than {0}/first.partial: model "),
        (("first", "other_data"), "other_data.partial is of another data set than {0}/first.partial: data "),
        (("first", "first"), "first.partial is shard 1/2 a second time"),
        (("first",), "shard 2/2 is missing: 1 of 2 are given"),
        (("second",), "shard 1/2 is missing"),
        (("first", "third_of_3"), "third_of_3.partial is of another division than {0}/first.partial"),
        (("first", "rows"), "rows.partial is of another command: it is of predict, {0}/first.partial of calibrate"),
        (("groups", "groups_of_other_data"), "data.partial is of another data set than {0}/groups.partial: data "),
        (("groups", "groups_of_other_model"), "model.partial is of another model than {0}/groups.partial: model "),
        (("groups", "groups"), "groups.partial is shard 1/2 a second time"),
        (("groups",), "shard 2/2 is missing: 1 of 2 are given"),
        (("first", "groups"), "groups.partial is of another command: it is of sensitivity, {0}/first.partial of calib"),
        (("first", "text"), "text.partial is not a partial result"),
        (("first", "cut"), "cut.partial is not a partial result"),
        (("first", "nosuch"), "nosuch.partial does not exist"),
    ],
)
def test_what_does_not_belong_together_is_refused_in_one_line(
    names: tuple[str, ...], said: str, parts: Path, cli: Cli, tmp_path: Path
) -> None:
    done = cli("merge", *(parts / f"{name}.partial" for name in names), "-o", tmp_path / "out")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert said.format(parts) in line
    assert not (tmp_path / "out").exists()


def test_merging_where_the_data_have_changed_is_refused(parts: Path, cli: Cli, tmp_path: Path) -> None:
    halves = [parts / "first.partial", parts / "second.partial"]
    with zipfile.ZipFile(halves[0]) as archive:
        plan = json.loads(archive.read("partial.json"))["plan"]
    changed = []
    for half in halves:
        copy = tmp_path / half.name
        with zipfile.ZipFile(half) as old, zipfile.ZipFile(copy, "w") as new:
            header = json.loads(old.read("partial.json"))
            header["plan"]["calib"]["source"] = str(parts / "b.npz")
            new.writestr("partial.json", json.dumps(header))
            new.writestr("counts.npz", old.read("counts.npz"))
        changed.append(copy)
    assert plan == encode(calibration(DIGITS, parts / "a.npz", parts / "first"))
    done = cli("merge", *changed, "-o", tmp_path / "out")
    assert done.code == 2
    assert "is of another data set than is found here" in done.err


def test_merging_groups_where_the_data_have_changed_is_refused(cli: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input=np.load(EVAL)["input"][:20])
    path = sensitivity_shard(measurement(tmp_path, data=tmp_path / "d.npz"), Shard(1, 1))
    np.savez(tmp_path / "d.npz", input=np.load(EVAL)["input"][20:40])
    done = cli("merge", path, "-o", tmp_path / "out", "-q")
    assert done.code == 2
    assert f"{path} is of another data set than is found here" in done.err


def test_a_damaged_member_is_named(parts: Path, cli: Cli, tmp_path: Path) -> None:
    whole = bytearray((parts / "second.partial").read_bytes())
    at = whole.find(b"counts.npz") + 200
    whole[at : at + 4] = bytes(255 - byte for byte in whole[at : at + 4])
    (tmp_path / "second.partial").write_bytes(whole)
    done = cli("merge", parts / "first.partial", tmp_path / "second.partial", "-o", tmp_path / "out", "-q")
    assert done.code == 2
    assert f"{tmp_path / 'second.partial'} is damaged" in done.err


def test_the_commands_write_and_merge_shards(int8: Path, cli: Cli, tmp_path: Path) -> None:
    for number in (1, 2):
        shard = ("--shard", f"{number}/2", "-o", tmp_path / "c")
        assert cli("calibrate", DIGITS, "--calib", CALIB, "--method", "minmax", *shard).out == (
            f"{tmp_path / f'c/calibrate.{number}-of-2.partial'}\n"
        )
        shard = ("--shard", f"{number}/2", "-o", tmp_path / "d", "-q")
        assert cli("compare", DIGITS, int8, "--data", EVAL, "--gate", "top1=0.01%", *shard).code == 0
        shard = ("--shard", f"{number}/2", "-o", tmp_path / "e", "-q")
        assert cli("sensitivity", DIGITS, "--calib", CALIB, "--samples", 20, *shard).out == (
            f"{tmp_path / f'e/sensitivity.{number}-of-2.partial'}\n"
        )
    merged = cli("merge", *sorted((tmp_path / "c").glob("*.partial")))
    assert "scales by minmax over" in merged.out
    assert (tmp_path / "c/calibration.json").exists()
    judged = cli("merge", *sorted((tmp_path / "d").glob("*.partial")), "--format", "json", "-q")
    assert judged.code in (1, 4)  # the gate of the shards
    assert json.loads(judged.out)["comparison"]["samples"] == 1000
    examined = cli("merge", *sorted((tmp_path / "e").glob("*.partial")), "--format", "json", "-q")
    assert json.loads(examined.out)["sensitivity"]["samples"] == 16


def test_a_custom_metric_sees_the_same_batches(int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric_of_shards.py").write_text(
        "def spread(reference, candidate, labels):\n"
        "    return {'worst': float(abs(reference['logits'] - candidate['logits']).max()), 'n': len(labels)}\n"
    )
    monkeypatch.chdir(tmp_path)
    measure = MeasurePlan(metrics=("own_metric_of_shards:spread",))

    def plan(name: str) -> ComparePlan:
        data = DataPlan(source=str(EVAL))
        return ComparePlan(baseline=DIGITS, candidates=(int8,), run_dir=tmp_path / name, data=data, measure=measure)

    whole = compare(plan("whole"))
    report, _ = merge([compare_shard(plan("parts"), shard) for shard in shards(3)])
    assert report.comparison == whole.comparison  # type: ignore[union-attr]


def test_partial_results_come_in_the_order_of_their_shards(parts: Path) -> None:
    read = read_whole([parts / "second.partial", parts / "first.partial"])
    assert [str(partial.header.shard) for partial in read] == ["1/2", "2/2"]
