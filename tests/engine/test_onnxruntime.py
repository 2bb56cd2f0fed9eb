"""Running a graph in onnxruntime: outputs by name, and errors with their cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from trtopt.engine.onnxruntime import open_runner
from trtopt.errors import EXIT_UNABLE, DataError, EnvironmentUnableError, ModelError
from trtopt.graph.file import load_proto

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 3] x, float[n, 3] z) => (float[n, 3] sum, int64[n] best) {
  sum = Add(x, z)
  best = ArgMax<axis = 1, keepdims = 0>(sum)
}"""
X = np.array([[1, 2, 3], [6, 5, 4]], np.float32)
NO_CUDA = "CUDAExecutionProvider" not in ort.get_available_providers()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_outputs_are_returned_by_name(path: Path) -> None:
    runner = open_runner(path)
    assert runner.inputs == ("x", "z")
    assert runner.outputs == ("sum", "best")
    got = runner.run({"z": np.ones_like(X), "x": X, "not read": X})
    assert list(got) == ["sum", "best"]
    assert np.array_equal(got["sum"], X + 1)
    assert got["best"].tolist() == [2, 0]


def test_equal_node_names_are_accepted_and_kept(path: Path) -> None:
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.name = "same"
    onnx.save(proto, path)
    assert open_runner(path).run({"x": X, "z": X})["best"].tolist() == [2, 0]
    assert [node.name for node in load_proto(path).graph.node] == ["same", "same"]


def test_the_product_of_a_scaled_and_transposed_matrix_with_a_vector_is_right(path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[3, 3] x, float[3] z) => (float[3] y) <float half = {0.5}> {
        scaled = Mul(half, x)
        transposed = Transpose<perm = [1, 0]>(scaled)
        y = MatMul(transposed, z)
    }"""
    )
    onnx.save(model, path)
    x, z = np.arange(9, dtype=np.float32).reshape(3, 3), np.array([1, 2, 3], np.float32)
    assert np.array_equal(open_runner(path).run({"x": x, "z": z})["y"], 0.5 * x.T @ z)


def test_where_names_the_version_and_the_device(path: Path) -> None:
    assert open_runner(path).where == f"onnxruntime {ort.__version__}, CPU"


def test_the_error_about_a_wrong_shape_lists_the_feed(path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot run the model on x \[2, 3\], z \[2, 4\]") as caught:
        open_runner(path).run({"x": X, "z": np.ones((2, 4), np.float32)})
    assert "\n" not in str(caught.value)


def test_a_feed_of_the_wrong_type_is_rejected(path: Path) -> None:
    with pytest.raises(DataError, match="cannot run the model"):
        open_runner(path).run({"x": X, "z": X.astype(np.float64)})


def test_a_missing_input_is_named(path: Path) -> None:
    with pytest.raises(DataError, match="no data for input z: the sample has x"):
        open_runner(path).run({"x": X})


@pytest.mark.parametrize("data", [b"", b"no model at all", None], ids=["empty", "garbage", "missing"])
def test_a_file_that_is_not_a_model_is_a_model_error(path: Path, data: bytes | None) -> None:
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ModelError):
        open_runner(path)


def test_a_model_that_onnxruntime_cannot_load_is_a_model_error(path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "custom": 1]> g (float[4] x) => (float[4] y) { y = custom.Op(x) }'
    )
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"onnxruntime cannot load m\.onnx") as caught:
        open_runner(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not NO_CUDA, reason="onnxruntime has CUDA here")
def test_cuda_without_a_gpu_is_an_environment_error(path: Path) -> None:
    with pytest.raises(EnvironmentUnableError, match="no working CUDA provider") as caught:
        open_runner(path, device="cuda")
    assert caught.value.exit_code == EXIT_UNABLE == 3


@pytest.mark.skipif(not NO_CUDA, reason="onnxruntime has CUDA here")
def test_auto_falls_back_to_the_cpu(path: Path) -> None:
    assert open_runner(path, device="auto").where.endswith("CPU")


def test_qdq_pairs_are_not_fused_into_integer_kernels(tmp_path: Path) -> None:
    pair = "q = QuantizeLinear(x, s, z)\n d = DequantizeLinear(q, s, z)\n m = Softmax(d)\n"
    head = '<ir_version: 10, opset_import: ["": 19]> g (float[n, 64] x) => (float[n, 64]'
    given = "<float s = {0.037}, float t = {0.0133}, int8 z = {0}>"
    plain = onnx.parser.parse_model(f"{head} m) {given} {{ {pair} }}")
    onnx.save(plain, tmp_path / "plain.onnx")
    onnx.save(
        onnx.parser.parse_model(
            f"{head} y) {given} {{ {pair} o = QuantizeLinear(m, t, z)\n y = DequantizeLinear(o, t, z) }}"
        ),
        tmp_path / "q.onnx",
    )
    feed = {"x": np.random.default_rng(0).normal(0, 2, (100, 64)).astype(np.float32)}
    softmax = open_runner(tmp_path / "plain.onnx").run(feed)["m"]
    want = np.rint(softmax / np.float32(0.0133)) * np.float32(0.0133)
    assert np.array_equal(open_runner(tmp_path / "q.onnx").run(feed)["y"], want)


def test_a_simulated_graph_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 19]> g (float[4] x) => (float[4] y)'
        "{ h = Cast<to = 10>(x)\n e = Exp(h)\n y = Cast<to = 1>(e) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    runner = open_runner(tmp_path / "m.onnx")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert runner.run({"x": np.zeros(4, np.float32)})["y"].tolist() == [1, 1, 1, 1]
