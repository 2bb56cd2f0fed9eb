"""Bound runs: the same results as unbound runs, from buffers at fixed addresses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from trtopt.engine.onnxruntime import OrtRunner, open_runner
from trtopt.engine.runner.binding import BoundRun, DeviceTensor, exhausted, failure, first_line
from trtopt.errors import EXIT_UNABLE, DataError, OutOfMemoryError, UsageError

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 3] x, float[n, 3] z) => (float[n, 3] sum, int64[n] best) {
  sum = Add(x, z)
  best = ArgMax<axis = 1, keepdims = 0>(sum)
}"""
X = np.array([[1, 2, 3], [6, 5, 4]], np.float32)
Z = np.zeros_like(X)


def opened(folder: Path, text: str = MODEL) -> OrtRunner:
    onnx.save(onnx.parser.parse_model(text), folder / "m.onnx")
    return open_runner(folder / "m.onnx")


@pytest.fixture
def bound(tmp_path: Path) -> BoundRun:
    return opened(tmp_path).bind({"x": X, "z": Z, "not read": X})


def test_a_bound_run_returns_the_results_of_an_unbound_run(tmp_path: Path) -> None:
    runner = opened(tmp_path)
    feed = {"x": X, "z": np.full_like(X, 0.5)}
    bound, plain = runner.bind(feed), runner.run(feed)
    bound.run()
    outputs = bound.copy_out()
    assert list(outputs) == list(plain) == ["sum", "best"]
    assert all(np.array_equal(outputs[name], plain[name]) for name in plain)


def test_tensors_have_shape_dtype_and_size(bound: BoundRun) -> None:
    described = {name: (tensor.shape, tensor.dtype, tensor.nbytes) for name, tensor in bound.tensors.items()}
    assert described == {
        "x": ((2, 3), "float32", 24),
        "z": ((2, 3), "float32", 24),
        "sum": ((2, 3), "float32", 24),
        "best": ((2,), "int64", 16),
    }
    assert (bound.input_bytes, bound.output_bytes) == (48, 40)


def test_new_data_uses_the_same_buffers(bound: BoundRun) -> None:
    before = dict(bound.tensors)
    bound.copy_in({"x": X + 1, "z": Z})
    bound.run()
    assert np.array_equal(bound.copy_out()["sum"], X + 1)
    assert bound.tensors == before


def test_copied_outputs_survive_the_next_run(bound: BoundRun) -> None:
    first = bound.copy_out()["sum"]
    bound.copy_in({"x": X * 7, "z": Z})
    bound.run()
    assert np.array_equal(first, X)


def test_the_buffers_are_not_the_callers_arrays(tmp_path: Path) -> None:
    array = X.copy()
    bound = opened(tmp_path).bind({"x": array, "z": Z})
    array[:] = 0
    bound.run()
    assert np.array_equal(bound.copy_out()["sum"], X)


def test_arrays_of_any_memory_layout_are_copied_correctly(bound: BoundRun) -> None:
    bound.copy_in({"x": np.asfortranarray(X), "z": Z})
    bound.run()
    assert np.array_equal(bound.copy_out()["sum"], X)


@pytest.mark.parametrize("wrong", [X[:1], X.astype(np.float64), X.reshape(3, 2)], ids=["batch", "type", "shape"])
def test_an_array_that_does_not_fit_its_buffer_is_rejected(bound: BoundRun, wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"input x is .*: its buffer is float32 \[2, 3\]"):
        bound.copy_in({"x": wrong, "z": Z})


def test_an_input_can_be_read_from_memory_of_the_caller(bound: BoundRun) -> None:
    elsewhere = np.full((2, 3), 9, np.float32)
    bound.read_from({"x": DeviceTensor(elsewhere.ctypes.data, (2, 3), "float32")})
    bound.run()
    assert (bound.copy_out()["sum"] == 9).all()
    with pytest.raises(DataError, match="input x has no buffer"):
        bound.copy_in({"x": X, "z": Z})


def test_a_device_tensor_can_be_bound_from_the_start(tmp_path: Path) -> None:
    elsewhere = np.full((2, 3), 4, np.float32)
    bound = opened(tmp_path).bind({"x": DeviceTensor(elsewhere.ctypes.data, (2, 3), "float32"), "z": Z})
    elsewhere[:] = 5
    bound.run()
    assert (bound.copy_out()["sum"] == 5).all()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("sum", DeviceTensor(0, (2, 3), "float32")), ("x", DeviceTensor(0, (4, 3), "float32"))],
    ids=["an output", "another shape"],
)
def test_a_tensor_that_does_not_match_an_input_is_rejected(bound: BoundRun, name: str, tensor: DeviceTensor) -> None:
    with pytest.raises(DataError, match=f"input {name} cannot be read"):
        bound.read_from({name: tensor})


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data for input z: the sample has x"):
        opened(tmp_path).bind({"x": X})


def test_data_that_does_not_fit_the_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot run the model on x \[2, 3\], z \[2, 4\]"):
        opened(tmp_path).bind({"x": X, "z": np.ones((2, 4), np.float32)})


def test_an_output_without_a_numpy_type_is_named(tmp_path: Path) -> None:
    runner = opened(
        tmp_path, '<ir_version: 9, opset_import: ["": 19]> g (float[2] x) => (bfloat16[2] y) { y = Cast<to = 16>(x) }'
    )
    with pytest.raises(DataError, match=r"output y cannot be bound: tensor\(bfloat16\) has no numpy type"):
        runner.bind({"x": X[0, :2]})


def test_an_output_that_changes_its_shape_is_an_error(tmp_path: Path) -> None:
    runner = opened(
        tmp_path, '<ir_version: 8, opset_import: ["": 17]> g (float[3] x) => (int64[1, n] y) { y = NonZero(x) }'
    )
    bound = runner.bind({"x": np.ones(3, np.float32)})
    bound.copy_in({"x": np.array([0, 1, 0], np.float32)})
    with pytest.raises(DataError, match="cannot run the model"):
        bound.run()


def test_exhausted_memory_is_its_own_error(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (int64[1] n) => (float[m] y) { y = ConstantOfShape(n) }"""
    runner = opened(tmp_path, text)
    huge = {"n": np.array([1 << 60], np.int64)}
    for run in (runner.run, runner.bind):
        with pytest.raises(OutOfMemoryError, match=r"memory is exhausted on n \[1\]") as caught:
            run(huge)
        assert caught.value.exit_code == EXIT_UNABLE
        assert "\n" not in str(caught.value)
    assert runner.run({"n": np.array([2], np.int64)})["y"].tolist() == [0, 0]


# Messages of onnxruntime 1.31 on the GPU.
@pytest.mark.parametrize(
    "message",
    [
        "Failed to allocate memory for requested buffer of size 1073741824",
        "Available memory of 0 is smaller than requested bytes of 822083584",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);",
        "CUDNN failure 4002: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "std::bad_alloc",
    ],
)
def test_messages_about_exhausted_memory_are_recognized(message: str) -> None:
    assert exhausted(RuntimeError(message))
    assert isinstance(failure(RuntimeError(message), {"x": (1, 3)}), OutOfMemoryError)


def test_other_failures_are_not_mistaken_for_exhausted_memory() -> None:
    for message in (
        "Got invalid dimensions for input: x",
        "CUDA failure 700: an illegal memory access was encountered",
    ):
        assert isinstance(failure(RuntimeError(message), {"x": (1, 3)}), DataError)


def test_the_main_line_is_the_failure_of_cuda() -> None:
    message = (
        "/src/cuda_info.cc:63 static Info::From(const Options&) [ONNXRuntimeError] : 1 : FAIL : Failed to parse: CUDA "
        "failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=a ; file=/src/cuda_info.cc ; line=70"
    )
    assert first_line(RuntimeError(message)) == "CUDA failure 100: no CUDA-capable device is detected"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:1", "CUDA"])
def test_an_unknown_device_is_rejected(tmp_path: Path, device: str) -> None:
    opened(tmp_path)
    with pytest.raises(UsageError, match="unknown device"):
        open_runner(tmp_path / "m.onnx", device=device)


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Load model from a/b.onnx failed:Fatal error: X is not registered",
        "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from a failed:This is an invalid model. Error: X is not "
        "registered",
        "X is not registered",
    ],
)
def test_the_main_line_of_an_exception_has_no_prefixes(message: str) -> None:
    assert first_line(RuntimeError(message)) == "X is not registered"
