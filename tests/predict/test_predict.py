"""`trtopt predict`: rows in every format, errors as rows, resumption, and refusals."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as parquet
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import CALIB, DIGITS, EVAL, Done, save

from trtopt.engine.onnxruntime import open_runner
from trtopt.predict.answers import Field
from trtopt.predict.block import Block
from trtopt.predict.formats import jsonl

Cli = Callable[..., Done]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return open_runner(DIGITS).run({"input": np.load(EVAL)["input"]})["logits"]


def test_jsonl_has_the_highest_scores_of_every_sample(cli: Cli, tmp_path: Path, expected: np.ndarray) -> None:
    out = tmp_path / "out.jsonl"
    done = cli("predict", DIGITS, "--data", EVAL, "-o", out)
    assert done.code == 0, done.err
    assert f"{out}: 1000 rows of top5" in done.out
    assert "onnxruntime" in done.out
    rows = lines(out)
    assert [row["sample"] for row in rows] == [f"eval.npz[{i}]" for i in range(1000)]
    assert [row["classes"][0] for row in rows] == expected.argmax(axis=1).tolist()  # type: ignore[index]
    np.testing.assert_allclose([row["scores"][0] for row in rows], expected.max(axis=1), rtol=1e-5)  # type: ignore[index]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.json"]


@pytest.mark.parametrize("suffix", ["parquet", "npz", "jsonl"])
def test_raw_outputs_are_those_of_the_network(suffix: str, cli: Cli, tmp_path: Path, expected: np.ndarray) -> None:
    out = tmp_path / f"out.{suffix}"
    assert cli("predict", DIGITS, "--data", EVAL, "-o", out, "--answers", "raw", "-q").code == 0
    if suffix == "parquet":
        found = np.array(parquet.read_table(out)["logits"].to_pylist())
    elif suffix == "npz":
        found = loaded(out)["logits"]
    else:
        found = np.array([row["logits"] for row in lines(out)])
    assert found.shape == (1000, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_classes_are_named_where_their_names_are_known(cli: Cli, tmp_path: Path, expected: np.ndarray) -> None:
    names = [f"digit {i}" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    out = tmp_path / "out.parquet"
    flags = ("--classes", tmp_path / "names.txt", "--answers", "top2", "--samples", "50")
    assert cli("predict", DIGITS, "--data", EVAL, "-o", out, *flags, "-q").code == 0
    rows = parquet.read_table(out).to_pylist()
    assert len(rows) == 50
    assert all(len(row["classes"]) == 2 and set(row["classes"]) <= set(names) for row in rows)


def test_a_corrupt_image_is_a_row_with_an_error(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(CALIB, folder)
    images = sorted(path for path in folder.rglob("*.png"))
    images[3].write_bytes(b"not an image")
    images[5].write_bytes(images[5].read_bytes()[:-40])  # its header is readable
    out = tmp_path / "out.jsonl"
    done = cli("predict", DIGITS, "--data", folder, "-o", out)
    assert done.code == 0, done.err
    assert f"2 of {len(images)} samples have no answer" in done.err
    bad = [row for row in lines(out) if row["error"]]
    assert [row["sample"] for row in bad] == [str(images[i].relative_to(folder)) for i in (3, 5)]
    assert "cannot be read as an image" in str(bad[0]["error"])
    assert len(lines(out)) == len(images)


def test_a_bad_row_of_the_data_is_a_row_with_an_error(cli: Cli, tmp_path: Path) -> None:
    net = save(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], [], ("n", 3), ("n", 3))
    (tmp_path / "d.jsonl").write_text('{"x": [1, 2, 3]}\n{"x": [1, 2,\n{"z": [1]}\n{"x": [3, -2, 1]}\n')
    out = tmp_path / "out.jsonl"
    assert cli("predict", net, "--data", tmp_path / "d.jsonl", "-o", out, "--answers", "raw").code == 0
    first, second, third, last = lines(out)
    assert (first["y"], last["y"]) == ([1, 2, 3], [3, 0, 1])
    assert "d.jsonl:2: not JSON" in str(second["error"])
    assert "d.jsonl:3: no field for input x" in str(third["error"])


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_an_error_leaves_its_row_empty(suffix: str, cli: Cli, tmp_path: Path) -> None:
    data = np.load(EVAL)["input"][:20].copy()
    data[7, 0, 0, 0] = np.nan
    np.savez(tmp_path / "d.npz", input=data)
    out = tmp_path / f"out.{suffix}"
    assert cli("predict", DIGITS, "--data", tmp_path / "d.npz", "-o", out, "-q").code == 0
    if suffix == "parquet":
        rows = parquet.read_table(out).to_pylist()
        assert rows[7]["scores"] is None
        assert "NaN" in rows[7]["error"]
        assert all(row["error"] is None and len(row["scores"]) == 5 for i, row in enumerate(rows) if i != 7)
    else:
        archive = loaded(out)
        assert np.isnan(archive["scores"][7]).all()
        assert np.isfinite(np.delete(archive["scores"], 7, axis=0)).all()
        assert "NaN" in archive["error"][7]


@pytest.fixture(scope="module")
def lengths_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a network over sequences of any length: `x` [n, length, 4] to `y` [n, length, 3]."""
    weights = [numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return save(tmp_path_factory.mktemp("l") / "l.onnx", nodes, weights, ("n", "length", 4), ("n", "length", 3))


@pytest.mark.parametrize("suffix", ["parquet", "npz", "jsonl"])
def test_samples_of_different_shapes_are_joined_by_shape(
    suffix: str, lengths_net: Path, cli: Cli, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    samples = [random.normal(size=(2 + i % 3, 4)).astype(np.float32) for i in range(30)]
    (tmp_path / "data").mkdir()
    for i, sample in enumerate(samples):
        np.savez(tmp_path / f"data/{i:02}.npz", x=sample)
    out = tmp_path / f"out.{suffix}"
    assert cli("predict", lengths_net, "--data", tmp_path / "data", "-o", out, "--batch", "4", "-q").code == 0
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    if suffix == "npz":
        archive = loaded(out)
        ends = archive["y_shape"].prod(axis=1).cumsum()
        found = [v.reshape(s) for v, s in zip(np.split(archive["y"], ends[:-1]), archive["y_shape"], strict=True)]
    elif suffix == "parquet":
        found = [np.array(row) for row in parquet.read_table(out)["y"].to_pylist()]
    else:
        found = [np.array(row["y"]) for row in lines(out)]
    for sample, answer in zip(samples, found, strict=True):
        np.testing.assert_allclose(answer, sample @ weight, rtol=1e-5, atol=1e-5)


def test_a_network_that_mixes_the_rows_of_a_batch_runs_sample_by_sample(cli: Cli, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    net = save(tmp_path / "mix.onnx", nodes, [], ("n", 4), ("n", 4))
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32))
    out = tmp_path / "out.npz"
    assert cli("predict", net, "--data", tmp_path / "d.npz", "-o", out, "--answers", "raw", "-q").code == 0
    assert not loaded(out)["y"].any()


def test_a_fixed_batch_is_filled_up(cli: Cli, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    net = save(tmp_path / "fixed.onnx", nodes, [], (4, 3), (4, 3))
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    values[2, 0] = np.nan
    np.savez(tmp_path / "d.npz", x=values)
    out = tmp_path / "out.npz"
    assert cli("predict", net, "--data", tmp_path / "d.npz", "-o", out, "--answers", "raw", "-q").code == 0
    archive = loaded(out)
    assert np.flatnonzero(archive["error"] != "").tolist() == [2]
    kept = np.arange(10) != 2
    np.testing.assert_array_equal(archive["y"][kept], np.maximum(values[kept], 0))


def test_a_detector_gives_its_boxes(cli: Cli, tmp_path: Path) -> None:
    corners = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 0, 0]], np.float32)
    tensors = {"c": corners, "s": np.array([0.9, 0.5, 0.0], np.float32), "l": np.array([1, 0, 0], np.int64)}
    nodes = [
        helper.make_node("Identity", ["c"], ["boxes"]),
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        helper.make_node("Sub", ["m", "m"], ["zero"]),
        helper.make_node("Add", ["s", "zero"], ["scores"]),
        helper.make_node("Identity", ["l"], ["labels"]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ("k", 4)),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("k",)),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ("k",)),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))]
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "detector", inputs, outputs, weights)
    net = tmp_path / "detector.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), net)
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    out = tmp_path / "out.jsonl"
    done = cli("predict", net, "--data", tmp_path / "d.npz", "-o", out, "--classes", tmp_path / "names.txt")
    assert done.code == 0, done.err
    assert "rows of boxes" in done.out
    wanted = {"boxes": [[0, 0, 2, 2], [1, 1, 3, 3]], "scores": [0.9, 0.5], "classes": ["dog", "cat"]}
    assert lines(out) == [{"sample": f"d.npz[{i}]", "error": None, **wanted} for i in range(2)]


def test_a_complete_output_is_not_written_again(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ("predict", DIGITS, "--data", EVAL, "-o", out)
    cli(*command)
    before = out.stat().st_mtime_ns
    done = cli(*command)
    assert done.code == 0
    assert "cached" in done.err
    assert out.stat().st_mtime_ns == before
    assert "1000 rows" in done.out


def refusal(done: Done, code: int = 2) -> str:
    assert done.code == code, (done.code, done.out, done.err)
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert not done.out
    return errors[0]


def test_an_output_of_another_run_is_kept(cli: Cli, tmp_path: Path, conv_net: Path) -> None:
    out = tmp_path / "out.jsonl"
    cli("predict", DIGITS, "--data", EVAL, "-o", out, "-q")
    before = out.read_bytes()
    other = cli("predict", DIGITS, "--data", EVAL, "-o", out, "--answers", "raw")
    assert "is of another run: it is of another value of answers" in refusal(other)
    (tmp_path / "mine.jsonl").write_text("mine")
    assert "mine.jsonl exists" in refusal(cli("predict", DIGITS, "--data", EVAL, "-o", tmp_path / "mine.jsonl"))
    assert (out.read_bytes(), (tmp_path / "mine.jsonl").read_text()) == (before, "mine")
    assert cli("predict", DIGITS, "--data", EVAL, "-o", out, "--answers", "raw", "--force", "-q").code == 0
    assert out.read_bytes() != before
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nosuch", "--data", EVAL, "-o", "out.jsonl"), "nosuch does not exist"),
        ((DIGITS, "--data", EVAL, "-o", "out.csv"), "out.csv has the unknown suffix .csv"),
        ((DIGITS, "--data", EVAL, "-o", "out"), "out has no suffix"),
        ((DIGITS, "--data", "nosuch.npz", "-o", "out.jsonl"), "nosuch.npz"),
        ((DIGITS, "--data", EVAL, "-o", "out.jsonl", "--answers", "top0"), "unknown answer 'top0'"),
        ((DIGITS, "--data", EVAL, "-o", "out.jsonl", "--answers", "boxes"), "no output holds boxes"),
        (
            (DIGITS, "--data", EVAL, "-o", "file/out.jsonl"),
            "cannot write to file/out.jsonl: a part",
        ),
        ((DIGITS, "--data", EVAL, "-o", "out.jsonl", "--shard", "5/4"), "invalid --shard '5/4'"),
        ((DIGITS, "--data", EVAL, "-o", "out.jsonl", "--yield", "lots"), "invalid --yield 'lots'"),
        ((DIGITS, "--data", "bad", "-o", "out.jsonl"), "bad: no sample can be used: the first because"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[object, ...], said: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("bad").mkdir()
    Path("bad/a.png").write_bytes(b"not an image")
    assert said in refusal(cli("predict", *arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "file"]


def test_class_names_must_fit_the_scores(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    done = cli("predict", DIGITS, "--data", EVAL, "-o", tmp_path / "o.jsonl", "--classes", tmp_path / "names.txt")
    assert "2 class names do not fit the scores: logits has 10" in refusal(done)


def test_labels_of_folders_do_not_matter(cli: Cli, tmp_path: Path) -> None:
    image = next(CALIB.rglob("*.png"))
    for name in ("inbox/a.png", "b.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, tmp_path / "d" / name)
    for recipe in CALIB.glob("*.toml"):
        shutil.copyfile(recipe, tmp_path / "d" / recipe.name)
    done = cli("predict", DIGITS, "--data", tmp_path / "d", "-o", tmp_path / "o.jsonl")
    assert done.code == 0, done.err
    assert [row["sample"] for row in lines(tmp_path / "o.jsonl")] == ["b.png", "inbox/a.png"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_json_of_rows_together_is_that_of_each_row(
    dtype: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (np.random.default_rng(0).normal(0, 9, (4, *shape)) ** 9).astype(dtype)
    fields = [Field(name="y", dtype=dtype, rank=len(shape))]
    block = Block(number=0, ids=list("abcde"), errors={2: "bad"}, columns={"y": [*values[:2], None, *values[2:]]})
    together, alone = io.BytesIO(), io.BytesIO()
    jsonl.write(block, fields, together)
    monkeypatch.setattr(jsonl, "_TOGETHER", 0)
    jsonl.write(block, fields, alone)
    assert together.getvalue() == alone.getvalue()
    found = [json.loads(line) for line in together.getvalue().splitlines()]
    assert [line["sample"] for line in found] == list("abcde")
    assert found[2] == {"sample": "c", "error": "bad"}
    assert np.array_equal(np.array(found[4]["y"], dtype), values[3])
