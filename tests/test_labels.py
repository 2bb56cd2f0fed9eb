"""Labels from the command line: a model of five classes, and images of some of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support import EVAL, Done

Cli = Callable[..., Done]

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 200, 200), "white": (255,) * 3}


def network(path: Path, batch: int | str = "n", classes: int | str = 5) -> Path:
    """Write a net that scores the colour of an image; its number of `classes` may be dynamic."""
    prototypes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0.7, 0.7], [0.6, 0.6, 0.6]], np.float32).T
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], "pool", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["logits"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(prototypes, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def images(folder: Path, *colours: str) -> Path:
    random = np.random.default_rng(0)
    for colour in colours:
        (folder / colour).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(np.array(COLOURS[colour]) + random.integers(-40, 40, (8, 8, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / colour / f"{i}.png")
    (folder / "recipe.toml").write_text("[image]\nscale = 0.00392156862745098\n")
    return folder


def convert(cli: Cli, model: Path, data: Path, out: Path, *more: object) -> Done:
    return cli("convert", model, "-p", "fp16", "--backend", "onnxruntime", "--data", data, "-o", out, *more)


def values(out: Path) -> dict[str, float]:
    (output,) = json.loads((out / "report.json").read_text())["comparison"]["outputs"]
    found: dict[str, float] = output["values"]
    return found


def refused(done: Done, *words: str) -> None:
    assert done.code == 2, done.err
    message = " ".join(done.err.split())
    for word in words:
        assert word in message, message
    assert "Traceback" not in done.err


@pytest.fixture
def some(tmp_path: Path) -> Path:
    return images(tmp_path / "eval", "green", "teal")


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(COLOURS))
    return path


def test_some_of_the_class_folders_are_refused_before_anything_is_run(cli: Cli, tmp_path: Path, some: Path) -> None:
    done = convert(cli, network(tmp_path / "m.onnx"), some, tmp_path / "out")
    refused(done, "indices into 2 class folders (green, teal), and output logits has 5 scores", "--classes FILE")
    assert "prepare" not in done.err


def test_some_of_the_class_folders_are_refused_when_the_scores_are_known(cli: Cli, tmp_path: Path, some: Path) -> None:
    done = convert(cli, network(tmp_path / "m.onnx", classes="c"), some, tmp_path / "out")
    refused(done, "indices into 2 class folders (green, teal), and output logits has 5 scores", "--classes FILE")
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("batch", ["n", 3, 16])
@pytest.mark.parametrize("classes", [5, "c"])
def test_class_names_make_accuracy_right(
    cli: Cli, tmp_path: Path, some: Path, names: Path, batch: int | str, classes: int | str
) -> None:
    model = network(tmp_path / "m.onnx", batch, classes if batch == "n" else 5)
    done = convert(cli, model, some, tmp_path / "out", "--classes", names, "--gate", "top1=20%")
    assert done.code == 0, done.err
    assert (values(tmp_path / "out")["accuracy_fp32"], values(tmp_path / "out")["accuracy"]) == (100.0, 100.0)
    assert "40 samples" in done.out
    done = cli("compare", model, tmp_path / "out", "--data", some, "--classes", names, "-o", tmp_path / "b")
    assert values(tmp_path / "b")["accuracy"] == 100.0


def test_other_class_names_are_compared_again(cli: Cli, tmp_path: Path, some: Path, names: Path) -> None:
    model = network(tmp_path / "m.onnx")
    (tmp_path / "other.json").write_text('{"green": 3, "teal": 1}')
    for file, unfit in ((names, False), (tmp_path / "other.json", True)):
        done = convert(cli, model, some, tmp_path / "out", "--classes", file)
        assert ("accuracy" not in values(tmp_path / "out")) == unfit, done.err


def test_all_class_folders_are_taken_in_sorted_order(cli: Cli, tmp_path: Path) -> None:
    done = convert(cli, network(tmp_path / "m.onnx"), images(tmp_path / "all", *COLOURS), tmp_path / "out")
    assert values(tmp_path / "out")["accuracy"] == 100.0
    assert "labels are the indices of the 5 subfolders in sorted order" in " ".join(done.out.split())


def test_an_output_that_is_not_class_scores_takes_any_folders(cli: Cli, tmp_path: Path, some: Path) -> None:
    done = convert(cli, network(tmp_path / "m.onnx"), some, tmp_path / "out", "--kind", "logits=values")
    assert done.code == 0, done.err


def test_calibration_takes_any_folders(cli: Cli, tmp_path: Path, some: Path, names: Path) -> None:
    calib = images(tmp_path / "calib", "red", "white")
    model = network(tmp_path / "m.onnx")
    done = convert(cli, model, some, tmp_path / "out", "--calib", calib, "--classes", names, "--gate", "top1=20%")
    assert done.code == 0, done.err
    assert values(tmp_path / "out")["accuracy"] == 100.0
    refused(convert(cli, model, calib, tmp_path / "b"), "2 class folders (red, white)")


def test_labels_of_a_csv_file(cli: Cli, tmp_path: Path, some: Path, names: Path) -> None:
    rows = [f"{path.relative_to(some)},{path.parent.name}" for path in some.rglob("*.png")]
    (tmp_path / "labels.csv").write_text("\n".join(["image,colour", *rows]))
    flags = ("--labels", tmp_path / "labels.csv", "--classes", names)
    convert(cli, network(tmp_path / "m.onnx"), some, tmp_path / "out", *flags)
    assert values(tmp_path / "out")["accuracy"] == 100.0


@pytest.mark.parametrize(
    ("flag", "text", "reason"),
    [
        ("--classes", None, "--classes given.txt: no such file"),
        ("--classes", "", "given.txt: contains no class names"),
        ("--classes", "green\nteal\ngreen", "green appears twice"),
        ("--classes", "blue\ngreen\nred\nteel\nwhite", "teal is not a class of given.txt. Did you mean teel?"),
        ("--classes", "green\nteal", "indices into 2 names in given.txt, and output logits has 5 scores"),
        ("--labels", None, "--labels given.txt: no such file"),
        ("--labels", "green/0.png,1", "no label for 39 of 40 images"),
        ("--labels", "green/0.png,green", "label 'green' is not a class index"),
    ],
)
def test_wrong_files_are_refused(
    cli: Cli, tmp_path: Path, some: Path, monkeypatch: pytest.MonkeyPatch, flag: str, text: str | None, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("given.txt").write_text(text)
    model = network(tmp_path / "m.onnx")
    refused(convert(cli, model, some, tmp_path / "out", flag, "given.txt"), reason)
    refused(cli("compare", model, model, "--data", some, flag, "given.txt", "-o", tmp_path / "b"), reason)


def test_labelling_without_images_is_refused(cli: Cli, tmp_path: Path, names: Path) -> None:
    model = network(tmp_path / "m.onnx")
    for flag in ("--classes", "--labels"):
        refused(convert(cli, model, EVAL, tmp_path / "out", flag, names), f"{flag} is for a folder of images")
        done = cli("convert", model, "--no-compare", "--backend", "onnxruntime", flag, names, "-o", tmp_path / "out")
        refused(done, f"{flag} needs samples to compare on. Add --data DATA")
        refused(cli("compare", "--from", tmp_path / "out", flag, names), f"Leave out {flag}")
