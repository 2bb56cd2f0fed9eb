"""`trtopt init`: the written file is accepted, fits a model with any names, and overwrites nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support import CALIB, DIGITS, EVAL, ROOT, Done

from trtopt.compare.gates import parse_gates
from trtopt.graph.file import describe
from trtopt.shapes import parse_shapes, profile

Cli = Callable[..., Done]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net(tensors: dict[str, tuple[int, tuple[int | str, ...]]]) -> str:
    """Write a model with these inputs and outputs, given as (type, shape) by name."""
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in tensors.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, (kind, shape) in tensors.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in tensors]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    return "net.onnx"


def written(cli: Cli, command: str = "convert") -> dict[str, object]:
    """Return the settings that `trtopt config` reads from the file."""
    done = cli("config", command, "--format", "json")
    assert done.code == 0, done.err
    flags = json.loads(done.out)["commands"][command]
    return {flag: each["value"] for flag, each in flags.items() if each["origin"] == "file"}


def test_the_written_file_converts_once_the_samples_are_there(cli: Cli) -> None:
    done = cli("init", DIGITS)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"trtopt.toml: put your samples into calib and data, then run: trtopt convert {DIGITS}\n"
    path = Path("trtopt.toml")
    path.write_text(path.read_text().replace('"data/calib"', f"'{CALIB}'").replace('"data/eval"', f"'{EVAL}'"))
    converted = cli("convert", DIGITS, "--backend", "onnxruntime", "-o", "run")
    assert converted.code == 0, converted.err
    assert "logits: top1" in converted.out
    compared = cli("compare", DIGITS, "run")
    assert compared.code == 0, compared.err


def test_missing_samples_are_asked_for_by_name(cli: Cli) -> None:
    assert cli("init", DIGITS).code == 0
    done = cli("convert", DIGITS)
    assert done.code == 2
    assert "data/calib" in done.err


def test_shapes_gates_and_comments_fit_the_model(cli: Cli) -> None:
    assert cli("init", DIGITS).code == 0
    settings = written(cli)
    assert settings["shape"] == ["input=1x1x28x28:8x1x28x28:32x1x28x28"]
    assert settings["gate"] == "top1=1%"
    assert written(cli, "compare")["gate"] == "top1=1%"
    text = Path("trtopt.toml").read_text()
    assert "input  float32 [batch, 1, 28, 28]" in text
    assert "logits  float32 [batch, 10]" in text
    assert '# recipe = "grayscale"' in text
    assert '# classes = "classes.txt"' in text


def test_every_key_is_explained(cli: Cli) -> None:
    assert cli("init", DIGITS).code == 0
    lines = Path("trtopt.toml").read_text().splitlines()
    convert = lines[lines.index("[convert]") : lines.index("[compare]")]
    for i, line in enumerate(convert):
        if line.partition(" = ")[0] in written(cli):
            assert convert[i - 1].startswith("#"), line


def test_dynamic_dimensions_are_guessed_with_a_comment(cli: Cli) -> None:
    model = net({"ids": (TensorProto.INT64, ("n", "t")), "image": (TensorProto.FLOAT, (1, 3, "h", "w"))})
    assert cli("init", model).code == 0
    settings = written(cli)
    assert settings["shape"] == ["ids=1x8:8x32:32x128", "image=1x3x224x224:1x3x224x224:1x3x224x224"]
    profile(describe(Path(model)).inputs, parse_shapes(settings["shape"]))  # type: ignore[arg-type]
    assert "# GUESSED, use your own sizes: t of ids, h of image, w of image." in Path("trtopt.toml").read_text()


def test_fixed_shapes_need_no_flag(cli: Cli) -> None:
    assert cli("init", net({"x": (TensorProto.FLOAT, (1, 4))})).code == 0
    assert "shape" not in written(cli)


def test_each_output_gets_a_gate_of_its_kind(cli: Cli) -> None:
    model = net(
        {
            "class_scores": (TensorProto.FLOAT, ("n", 10)),
            "embedding": (TensorProto.FLOAT, ("n", 64)),
            "tokens": (TensorProto.INT64, ("n", 100)),
            "mask": (TensorProto.INT64, ("n", 32, 32)),
        }
    )
    assert cli("init", model).code == 0
    gates = parse_gates(str(written(cli)["gate"]))
    assert [(gate.output, gate.metric) for gate in gates] == [
        ("class_scores_out", "top1"),
        ("embedding_out", "cosine"),
        ("tokens_out", "equal"),
        ("mask_out", "miou"),
    ]


@pytest.mark.parametrize(
    "outputs",
    [
        {"boxes": (TensorProto.FLOAT, ("n", 100, 4)), "scores": (TensorProto.FLOAT, ("n", 100))},
        {"output0": (TensorProto.FLOAT, ("n", 300, 6))},
    ],
)
def test_outputs_that_may_be_boxes_are_left_to_the_defaults(
    outputs: dict[str, tuple[int, tuple[int | str, ...]]], cli: Cli
) -> None:
    assert cli("init", net(outputs)).code == 0
    assert "gate" not in written(cli)
    assert '# gate = "matched=99%,extra=1%"' in Path("trtopt.toml").read_text()


def test_unusual_names_do_not_break_the_file(cli: Cli) -> None:
    names = ['quote"', "line\nprecision = 'fp8'", "back\\slash", "délete\x7f", "a,b=c:d"]
    model = net(dict.fromkeys(names, (TensorProto.FLOAT, ("n", 4, 4))))
    assert cli("init", model).code == 0
    settings = written(cli)
    assert settings["precision"] == "int8"
    shapes = settings["shape"]
    assert [entry.name for entry in profile(describe(Path(model)).inputs, parse_shapes(shapes))[0]] == names  # type: ignore[arg-type]
    gates = parse_gates(str(settings["gate"]))
    assert {gate.metric for gate in gates} == {"cosine"}
    assert "" in {gate.output for gate in gates}  # for the name that a gate cannot contain


def test_a_model_of_a_framework_gets_a_shorter_file(cli: Cli) -> None:
    assert cli("init", "package.module:factory").code == 0
    assert set(written(cli)) == {"precision", "calib", "data"}
    assert "# dtype = " in Path("trtopt.toml").read_text()


@pytest.mark.parametrize(
    ("name", "text"), [("trtopt.toml", ""), ("pyproject.toml", "[tool.trtopt.compare]\nworst = 1")]
)
def test_existing_settings_are_not_overwritten(name: str, text: str, cli: Cli) -> None:
    Path(name).write_text(text)
    done = cli("init", DIGITS)
    assert done.code == 2
    assert f"{name} already contains settings" in done.err
    assert Path(name).read_text() == text


@pytest.mark.parametrize("model", ["absent.onnx", ROOT / "README.md", ROOT / "tests"])
def test_a_file_that_is_not_a_model_leaves_no_settings(model: object, cli: Cli) -> None:
    done = cli("init", model)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert not Path("trtopt.toml").exists()
