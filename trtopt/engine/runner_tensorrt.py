"""TensorRT engines for `engine.runner`: TensorRT 10.12+, 11, and TensorRT for RTX.

A serialized engine is code. These functions run what they are given: the caller has checked that a manifest vouches for
the file's digest, or that the user trusts it.

Touches: reads the engine; the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from trtopt.engine.cuda import CudaError, Device, open_device
from trtopt.engine.diagnosis import clean, logger
from trtopt.engine.locate import TensorRT
from trtopt.engine.runner import EngineRunner
from trtopt.engine.runner_program import Execution, Port, Shape
from trtopt.errors import DataError, EnvironmentUnableError, ModelError

_DTYPES: dict[str, npt.DTypeLike] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP8": ml_dtypes.float8_e4m3fn,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
"""TensorRT's types and numpy's. INT4 and FP4, two values a byte, are no types of inputs and outputs here."""


def open_engine(trt: TensorRT, path: Path, *, gpu: int = 0, streams: int = 2, graphs: bool = True) -> EngineRunner:
    """Load a trusted engine and make it ready on a GPU.

    Raises:
        EnvironmentUnableError: there is no GPU, or this TensorRT does not load the engine on it.
        OutOfMemoryError: the GPU has no memory for its largest shapes.
        ModelError: the file is no engine, or cannot be read.
        MissingDependencyError: neither cuda-python nor pycuda is installed.
    """
    device = open_device(gpu)
    try:
        program = load(trt, path, device)
    except BaseException:
        device.close()
        raise
    return EngineRunner(device, program, streams=streams, graphs=graphs)


def load(trt: TensorRT, path: Path, device: Device) -> TensorRTProgram:
    """Load a trusted engine; the device is the current one. Raises as `open_engine` does."""
    before = device.free_bytes()
    engine = deserialize(trt, path)
    return TensorRTProgram(trt, engine, before - device.free_bytes())


def deserialize(trt: TensorRT, path: Path) -> Any:
    """Return TensorRT's engine object for a trusted file.

    Raises:
        ModelError: the file is no engine, or cannot be read.
        EnvironmentUnableError: this TensorRT does not load it here.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    collector = logger(trt.module.__name__)
    collector.errors.clear()
    engine = trt.module.Runtime(collector).deserialize_cuda_engine(data)
    if engine is not None:
        return engine
    why = _said(trt)
    if "magicTag" in why or not data:
        raise ModelError(f"{path.name} is no engine of {trt.title}", why=why, fix="Build it again with this TensorRT")
    raise EnvironmentUnableError(
        f"{trt.title} does not load {path.name} here",
        why=why or "it needs an NVIDIA GPU that it supports, and its driver",
        fix="Build the engine with the TensorRT and for the GPU that runs it; trtopt doctor lists them",
    )


class TensorRTProgram:
    """An engine that TensorRT loaded; a `Program`. `weights_size` is how much less memory is free since, in bytes."""

    def __init__(self, trt: TensorRT, engine: Any, weights_size: int) -> None:
        self.where = trt.title
        self.weights_size = max(weights_size, 0)
        self.workspace_size = int(engine.device_memory_size_v2)
        self._trt, self._engine = trt, engine
        self._spare: Any = _context(trt, engine)  # the output sizes come from a context; the first execution takes it
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_output = {name: engine.get_tensor_mode(name) == trt.module.TensorIOMode.OUTPUT for name in names}
        inputs = tuple(self._input(name) for name in names if not is_output[name])
        self.ports = (*inputs, *(self._output(name) for name in names if is_output[name]))

    def prepare(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], workspace: int) -> Execution:
        """Make an execution for input shapes, with the address of every port and of the workspace."""
        context, self._spare = self._spare or _context(self._trt, self._engine), None
        context.set_device_memory(workspace, self.workspace_size)
        return _TensorRTExecution(self._trt, context, self.ports, shapes, addresses)

    def close(self) -> None:
        """Release the engine."""
        self._spare = self._engine = None

    def _input(self, name: str) -> Port:
        """An input, of which the spare context is told the largest shape."""
        shape = tuple(self._engine.get_tensor_shape(name))
        low = high = shape
        if -1 in shape:
            low, _, high = map(tuple, self._engine.get_tensor_profile_shape(name, 0))
        self._spare.set_input_shape(name, high)
        dtype = _dtype(self._engine.get_tensor_dtype(name), name)
        size = math.prod(high) * dtype.itemsize
        return Port(name=name, dtype=dtype, output=False, size=size, min=low, max=high, on_host=self._on_host(name))

    def _output(self, name: str) -> Port:
        """An output; every input has its largest shape."""
        return Port(
            name=name,
            dtype=_dtype(self._engine.get_tensor_dtype(name), name),
            output=True,
            size=int(self._spare.get_max_output_size(name)),
            on_host=self._on_host(name),
            sized_late=-1 in tuple(self._spare.get_tensor_shape(name)),
        )

    def _on_host(self, name: str) -> bool:
        return bool(self._engine.get_tensor_location(name) == self._trt.module.TensorLocation.HOST)


class _TensorRTExecution:
    """An execution context with its shapes and addresses; an `Execution`."""

    def __init__(
        self,
        trt: TensorRT,
        context: Any,
        ports: tuple[Port, ...],
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
    ) -> None:
        self._trt, self._context = trt, context
        self._outputs = tuple(port.name for port in ports if port.output)
        self._late: dict[str, Any] = {}
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise DataError(f"the engine refuses shape {list(shape)} of input {name}", why=_said(trt))
        for port in ports:
            if port.sized_late:
                self._late[port.name] = _allocator(trt, addresses[port.name], port.size)
                taken = context.set_output_allocator(port.name, self._late[port.name])
            else:
                taken = context.set_tensor_address(port.name, addresses[port.name])
            if not taken:
                raise CudaError(f"the engine takes no memory for {port.name}", why=_said(trt))

    def outputs(self) -> Mapping[str, Shape]:
        """The outputs' shapes."""
        return {
            name: self._late[name].shape if name in self._late else tuple(self._context.get_tensor_shape(name))
            for name in self._outputs
        }

    def enqueue(self, stream: int) -> None:
        """Enqueue the computation."""
        if not self._context.execute_async_v3(stream):
            raise CudaError("the engine does not run", why=_said(self._trt))

    def close(self) -> None:
        """Release the context."""
        self._context = None


def _context(trt: TensorRT, engine: Any) -> Any:
    """A context without memory of its own: all executions of a stream share its workspace."""
    context = engine.create_execution_context(trt.module.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise EnvironmentUnableError(f"{trt.title} cannot run the engine here", why=_said(trt))
    return context


def _allocator(trt: TensorRT, pointer: int, size: int) -> Any:
    """What TensorRT asks for an output whose size it knows late: memory for the largest is there already."""

    class Allocator(trt.module.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.shape: Shape = ()

        def reallocate_output_async(self, _name: str, _memory: int, wanted: int, _alignment: int, _stream: int) -> int:
            return pointer if wanted <= size else 0  # 0 is "no memory", and ends the run with an error

        def notify_shape(self, _name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()


def _dtype(dtype: Any, name: str) -> np.dtype[Any]:
    known = str(dtype).rpartition(".")[2]
    if known not in _DTYPES:
        raise ModelError(f"{name} of the engine is {dtype}", why=f"trtopt feeds and reads {', '.join(_DTYPES)}")
    return np.dtype(_DTYPES[known])


def _said(trt: TensorRT) -> str:
    """TensorRT's own words on what went wrong; they are forgotten then."""
    errors = logger(trt.module.__name__).errors
    words = "; ".join(dict.fromkeys(filter(None, map(clean, errors))))
    errors.clear()
    return words
