"""Errors about the model that say what to do next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support import DIGITS, Done, save

from trtopt.commands.inspect import look
from trtopt.engine.trt.refusal import advised
from trtopt.errors import BuildError

Cli = Callable[..., Done]
RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.normal(0, 0.1, shape).astype(np.float32), name)


def ones(*names: str) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.ones(16, np.float32), name) for name in names]


NORM = ones("scale", "shift", "mean", "variance")
IN_TRAINING = {
    "training_mode": (
        [
            helper.make_node(
                "BatchNormalization", ["x", *(t.name for t in NORM)], ["y", "m", "v"], "norm", training_mode=1
            )
        ],
        NORM,
    ),
    "dropout": (
        [helper.make_node("Dropout", ["x", "ratio", "mode"], ["y"], "drop")],
        [numpy_helper.from_array(np.float32(0.5), "ratio"), numpy_helper.from_array(np.bool_(True), "mode")],
    ),
}


@pytest.mark.parametrize("command", ["convert", "inspect"])
@pytest.mark.parametrize("kind", list(IN_TRAINING))
def test_training_mode_says_to_call_eval(kind: str, command: str, cli: Cli, tmp_path: Path) -> None:
    nodes, weights = IN_TRAINING[kind]
    model = save(tmp_path / "net.onnx", nodes, weights, shape=(4, 16, 8, 8), out=(4, 16, 8, 8))
    arguments = ["-p", "fp16", "--no-compare", "-o", tmp_path / "run"] if command == "convert" else []
    done = cli(command, model, *arguments)
    assert done.code == 2
    assert nodes[0].name in done.err
    assert "model.eval()" in done.err


def test_inference_mode_of_dropout_is_accepted(tmp_path: Path) -> None:
    nodes, (ratio, _) = IN_TRAINING["dropout"]
    mode = numpy_helper.from_array(np.bool_(False), "mode")
    look(save(tmp_path / "net.onnx", nodes, [ratio, mode]))


def with_fixed_batch(path: Path, batch: int) -> Path:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Reshape", ["r", "shape"], ["flat"], "reshape"),
        helper.make_node("MatMul", ["flat", "w"], ["y"], "matmul"),
    ]
    weights = [weight("w", 1024, 32), numpy_helper.from_array(np.array([batch, 1024]), "shape")]
    return save(path, nodes, weights, out=("n", 32))


@pytest.mark.parametrize(("batch", "backend"), [(1, "tensorrt"), (4, "tensorrt"), (4, "onnxruntime")])
def test_a_hard_coded_batch_is_proposed_as_the_shape(batch: int, backend: str, cli: Cli, tmp_path: Path) -> None:
    if backend == "tensorrt":
        pytest.importorskip("tensorrt_rtx")
    model = with_fixed_batch(tmp_path / "net.onnx", batch)
    np.savez(tmp_path / "x.npz", x=RNG.normal(size=(8, 16, 8, 8)).astype(np.float32))
    convert = (
        "convert",
        model,
        "-p",
        "fp16",
        "--data",
        tmp_path / "x.npz",
        "--backend",
        backend,
        "-o",
        tmp_path / "run",
    )
    done = cli(*convert)
    assert done.code == 2
    assert "Reshape" in done.err
    assert f"--shape x={batch}x16x8x8" in done.err
    assert cli(*convert, "--shape", f"x={batch}x16x8x8").code == 0


def test_an_operator_of_onnxruntime_says_to_export_before_its_optimizer(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(save(tmp_path / "net.onnx", [helper.make_node("FastGelu", ["x"], ["y"], "gelu")], []))
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "net.onnx")
    done = cli("convert", tmp_path / "net.onnx", "-p", "fp16", "--no-compare", "-o", tmp_path / "run")
    assert done.code == 2
    assert "before onnxruntime's optimizer" in done.err


def test_an_operator_that_onnxruntime_puts_into_the_domain_of_onnx_says_so_too(cli: Cli, tmp_path: Path) -> None:
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "scale"], ["y"], "norm", axis=-1)
    done = cli("inspect", save(tmp_path / "net.onnx", [node], ones("scale")))
    assert done.code == 2
    assert "before onnxruntime's optimizer" in done.err


def test_onnxruntime_is_not_advised_for_a_model_that_it_cannot_load(tmp_path: Path) -> None:
    error = BuildError("refused", fix="Replace this operator before the export, or use --backend onnxruntime")
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], "node", domain="nowhere")
    model = onnx.load(save(tmp_path / "net.onnx", [node], []))
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    onnx.save(model, tmp_path / "net.onnx")
    assert advised(error, tmp_path / "net.onnx").fix == "Replace this operator before the export"
    assert advised(error, DIGITS).fix == error.fix


def test_inspect_shows_the_decisions_for_the_prepared_graph(tmp_path: Path) -> None:
    """A batch normalization is folded into the convolution before it, as by a conversion."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", *(tensor.name for tensor in NORM)], ["y"], "norm"),
    ]
    path = save(tmp_path / "net.onnx", nodes, [weight("w", 16, 16, 3, 3), *NORM])
    assert [(decision.op, decision.precision) for decision in look(path).decisions] == [("Conv", "int8")]
    assert look(path).operators == {"Conv": 1, "BatchNormalization": 1}


def test_inspect_decides_on_the_graph_that_the_parser_here_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "scale"], ["y"], "norm")]
    path = save(tmp_path / "net.onnx", nodes, [weight("scale", 8)], shape=(4, 16, 8, 8), out=(4, 16, 8, 8))
    assert [decision.op for decision in look(path).decisions] == ["LayerNormalization"]
    monkeypatch.setattr("trtopt.engine.tensorrt.lacks", lambda _: {"LayerNormalization"})
    assert {"ReduceMean", "Sqrt"} <= {decision.op for decision in look(path).decisions}


def test_inspect_counts_weights_in_constant_nodes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], "constant", value=weight("w", 16, 16, 3, 3)),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4),
    ]
    found = look(save(tmp_path / "net.onnx", nodes, []))
    assert (found.parameters, found.weights) == (16 * 16 * 9, {"float": 16 * 16 * 9 * 4})
