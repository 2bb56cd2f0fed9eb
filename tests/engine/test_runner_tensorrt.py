"""Loading TensorRT engines, as far as that is possible without a GPU."""

from __future__ import annotations

import ast
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from engine.cuda_on_host import has_driver

from trtopt.engine.runner import tensorrt as runner_tensorrt
from trtopt.engine.trt.locate import TensorRT, find
from trtopt.engine.trt.versions import RTX
from trtopt.errors import EXIT_UNABLE, EnvironmentUnableError, MissingDependencyError, ModelError

pytest.importorskip(RTX)
without_driver = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")


@pytest.fixture(scope="module")
def trt() -> TensorRT:
    return find(RTX)


@pytest.fixture(scope="module")
def engine(trt: TensorRT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = trt.module
    from trtopt.engine.trt.diagnosis import logger

    builder = module.Builder(logger(RTX))
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", module.float32, (4, 4))
    y = network.add_activation(x, module.ActivationType.RELU).get_output(0)
    network.mark_output(y)
    path = tmp_path_factory.mktemp("engine") / "model.engine"
    path.write_bytes(memoryview(builder.build_serialized_network(network, builder.create_builder_config())))
    return path


@without_driver
def test_without_a_driver_the_error_does_not_blame_the_engine(trt: TensorRT, engine: Path) -> None:
    with pytest.raises(
        EnvironmentUnableError, match=r"does not load model\.engine here: it needs a supported NVIDIA GPU"
    ):
        runner_tensorrt.deserialize(trt, engine)


@without_driver
def test_opening_an_engine_without_a_gpu_is_an_error_of_one_line(trt: TensorRT, engine: Path) -> None:
    with pytest.raises((EnvironmentUnableError, MissingDependencyError)) as error:
        runner_tensorrt.open_engine(trt, engine)
    assert error.value.exit_code == EXIT_UNABLE
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"not an engine at all" * 20])
def test_a_file_that_is_not_an_engine_is_an_error(trt: TensorRT, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.engine is not an engine of TensorRT-RTX"):
        runner_tensorrt.deserialize(trt, path)


def test_a_missing_file_is_an_error(trt: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        runner_tensorrt.deserialize(trt, tmp_path / "none.engine")


def test_every_called_method_exists_in_tensorrt(trt: TensorRT) -> None:
    # No engine can be loaded without a GPU, so look the methods up in the classes.
    classes = {
        "_engine": trt.module.ICudaEngine,
        "engine": trt.module.ICudaEngine,
        "_spare": trt.module.IExecutionContext,
        "context": trt.module.IExecutionContext,
        "_context": trt.module.IExecutionContext,
        "module": trt.module,
    }
    called = set()
    for node in ast.walk(ast.parse(Path(runner_tensorrt.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
            if owner in classes and node.attr != "__name__":
                called.add((owner, node.attr))
    assert len(called) > 15
    called -= {("engine", "device_memory_size"), ("engine", "create_execution_context_without_device_memory")}  # 8.x
    assert not [(owner, name) for owner, name in called if not hasattr(classes[owner], name)]


def test_tensorrt_types_are_mapped_to_numpy_types(trt: TensorRT) -> None:
    types = trt.module.DataType
    assert runner_tensorrt._dtype(types.HALF, "x") == np.float16
    assert runner_tensorrt._dtype(types.BF16, "x") == ml_dtypes.bfloat16
    assert runner_tensorrt._dtype(types.FP8, "x") == ml_dtypes.float8_e4m3fn
    with pytest.raises(ModelError, match="INT4"):
        runner_tensorrt._dtype(types.INT4, "x")


def test_the_allocator_returns_its_memory_up_to_its_size(trt: TensorRT) -> None:
    allocator = runner_tensorrt._allocator(trt, 4096, 100)
    assert allocator.reallocate_output_async("y", 0, 100, 256, 1) == 4096
    assert allocator.reallocate_output_async("y", 0, 101, 256, 1) == 0
    allocator.notify_shape("y", trt.module.Dims([3, 5]))
    assert allocator.shape == (3, 5)
