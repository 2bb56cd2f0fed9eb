"""onnxruntime's CUDA provider: the results of the CPU, errors about exhausted memory, and no leaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt.calibrate.observe import observe, tap
from trtopt.calibrate.source import observe_where_it_runs
from trtopt.data.dataset import Dataset
from trtopt.engine.cuda.device import Device, open_device
from trtopt.engine.onnxruntime import REPEATABLE, CudaOptions, open_runner
from trtopt.engine.runner.binding import DeviceTensor
from trtopt.errors import EnvironmentUnableError, ModelError, OutOfMemoryError
from trtopt.events import Event, Warned, silent
from trtopt.graph.file import describe

pytestmark = pytest.mark.gpu
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((8, 16, 32, 32), np.float32)


@pytest.fixture
def device() -> Iterator[Device]:
    with open_device() as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a network of two convolutions with Relu, whose weights TF32 cannot represent exactly."""
    weights = [RANDOM.standard_normal((16, 16, 3, 3), np.float32) / 12 for _ in range(2)]
    nodes, x = [], "x"
    for i in range(2):
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        x = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, "h", "w"])],
        [helper.make_tensor_value_info("r1", TensorProto.FLOAT, ["n", 16, "h", "w"])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("nhwc", [None, False, True])
def test_fp32_is_not_computed_in_tf32(path: Path, nhwc: bool | None) -> None:
    runner = open_runner(path, device="cuda", cuda=CudaOptions(nhwc=nhwc))
    assert runner.where.endswith("CUDA, TF32 off")
    assert relative_error(runner.run({"x": X})["r1"], open_runner(path).run({"x": X})["r1"]) < 1e-5


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_used_only_on_request_and_reported(tmp_path: Path, tf32: bool) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, k] a, float[k, m] b) => (float[n, m] y) { y = MatMul(a, b) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    a, b = RANDOM.standard_normal((2, 512, 512), np.float32)
    runner = open_runner(tmp_path / "m.onnx", device="cuda", cuda=CudaOptions(tf32=tf32))
    assert runner.where.endswith(f"CUDA, TF32 {'on' if tf32 else 'off'}")
    error = relative_error(runner.run({"a": a, "b": b})["y"], np.float64(a) @ np.float64(b))
    assert 1e-4 < error < 1e-3 if tf32 else error < 1e-5


def test_repeatable_sessions_compute_the_same_bits(path: Path) -> None:
    first, *others = (open_runner(path, device="cuda", cuda=REPEATABLE).run({"x": X})["r1"] for _ in range(5))
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_bound_run_returns_the_results_of_an_unbound_run(path: Path, graphs: bool) -> None:
    runner = open_runner(path, device="cuda", cuda=CudaOptions(graphs=graphs))
    expected = open_runner(path).run({"x": X})["r1"], open_runner(path).run({"x": X[:2] * 3})["r1"]
    first, second = runner.bind({"x": np.zeros_like(X)}), runner.bind({"x": X[:2]})
    for _ in range(3):
        first.copy_in({"x": X})
        first.run()
        second.copy_in({"x": X[:2] * 3})
        second.run()
        assert relative_error(first.copy_out()["r1"], expected[0]) < 1e-5
        assert relative_error(second.copy_out()["r1"], expected[1]) < 1e-5


def test_inputs_and_outputs_stay_on_the_device(path: Path, device: Device) -> None:
    buffer, stream = device.allocate(2 * X.nbytes), device.stream()
    stream.to_device(buffer, np.stack([X, X * 2]))
    stream.synchronize()
    first = DeviceTensor(buffer.pointer, X.shape, "float32")
    bound = open_runner(path, device="cuda").bind({"x": first})
    bound.read_from({"x": replace(first, pointer=buffer.pointer + X.nbytes)})
    bound.run()
    output = np.empty(bound.tensors["r1"].shape, np.float32)
    stream.to_host(output, bound.tensors["r1"].pointer)
    stream.synchronize()
    assert relative_error(output, open_runner(path).run({"x": X * 2})["r1"]) < 1e-5


def test_exhausted_memory_is_an_error_and_a_smaller_batch_still_runs(path: Path) -> None:
    runner = open_runner(path, device="cuda", cuda=CudaOptions(memory_limit=256 << 20))
    huge = np.zeros((1024, 16, 64, 64), np.float32)
    for run in (runner.run, runner.bind):
        with pytest.raises(OutOfMemoryError, match="memory is exhausted on x"):
            run({"x": huge})
    assert np.isfinite(runner.run({"x": X})["r1"]).all()


def test_a_model_too_large_for_the_memory_is_an_error(path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"out of memory while loading m\.onnx"):
        open_runner(path, device="cuda", cuda=CudaOptions(memory_limit=4096))


def test_a_model_that_cannot_be_captured_as_a_cuda_graph_is_an_error(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[n] y) { y = Unique(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx cannot run as a CUDA graph"):
        open_runner(tmp_path / "m.onnx", device="cuda", cuda=CudaOptions(graphs=True))


def test_a_gpu_that_does_not_exist_is_an_error(path: Path) -> None:
    with pytest.raises(EnvironmentUnableError, match="no working CUDA provider"):
        open_runner(path, device="cuda:99")


def test_a_file_that_is_not_a_model_is_a_model_error_on_the_gpu_too(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        open_runner(tmp_path / "m.onnx", device="cuda")


def test_calibration_on_the_gpu_observes_the_same_as_on_the_cpu(path: Path, tmp_path: Path) -> None:
    tap(describe(path), ["r0", "r1"], tmp_path / "tapped.onnx")
    data = Dataset(
        source="random", digest="", ids=tuple(map(str, range(8))), load=lambda i: {"x": X[i : i + 1]}, batched=True
    )
    events: list[Event] = []
    names = ["x", "r0", "r1"]
    runner = open_runner(tmp_path / "tapped.onnx", device="cuda")
    on_gpu = observe_where_it_runs(runner, names, data, stage="calibrate", emit=events.append)
    on_cpu = observe(open_runner(tmp_path / "tapped.onnx").run, names, data, stage="calibrate", emit=silent)
    assert not [event for event in events if isinstance(event, Warned)]
    assert on_gpu["x"].counts()[1].tolist() == on_cpu["x"].counts()[1].tolist()
    for name in names:
        assert on_gpu[name].total == on_cpu[name].total
        assert on_gpu[name].amax == pytest.approx(on_cpu[name].amax, rel=1e-4)
        assert on_gpu[name].quantile(0.99) == pytest.approx(on_cpu[name].quantile(0.99), rel=1e-3)


def test_a_thousand_sessions_leak_no_more_memory_than_those_of_onnxruntime(path: Path, device: Device) -> None:
    """A bare CUDA session leaks: 10 KB of GPU and 150 KB of host memory with onnxruntime 1.31 and cuDNN 9.19."""

    def ours() -> None:
        bound = open_runner(path, device="cuda").bind({"x": X})
        bound.run()
        bound.copy_out()

    def bare() -> None:
        options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
        session = ort.InferenceSession(str(path), providers=[("CUDAExecutionProvider", options)])
        session.run(None, {"x": X})

    def growth(cycle: Callable[[], None]) -> tuple[int, int]:
        """Return the bytes of GPU and of host memory that a thousand cycles leak."""
        for _ in range(100):  # libraries load, pools fill
            cycle()
        before = device.free_bytes(), resident()
        for _ in range(1000):
            cycle()
        return before[0] - device.free_bytes(), resident() - before[1]

    leaked_bare, leaked_ours = growth(bare), growth(ours)
    assert leaked_ours[0] <= min(leaked_bare[0] + (4 << 20), 32 << 20)
    assert leaked_ours[1] <= min(leaked_bare[1] + (16 << 20), 256 << 20)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_runs_leak_no_memory(path: Path, device: Device) -> None:
    runner = open_runner(path, device="cuda")

    def cycle() -> None:
        bound = runner.bind({"x": X})
        bound.run()
        bound.copy_out()

    for _ in range(100):
        cycle()
    before = device.free_bytes(), resident()
    for _ in range(1000):
        cycle()
    assert before[0] - device.free_bytes() <= 4 << 20
    assert resident() - before[1] <= 4 << 20
