"""TensorRT engines for `engine.runner`, with TensorRT 8.5 to 11 and TensorRT for RTX.

A serialized engine contains code, which loading runs. Callers must have checked that the file's digest is listed in a
manifest, or that the user trusts the file.

Touches: reads the engine; the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from trtopt.engine.cuda.device import CudaError, Device, open_device
from trtopt.engine.runner.engine import EngineRunner
from trtopt.engine.runner.program import Execution, Port, Shape
from trtopt.engine.trt.diagnosis import clean, logger
from trtopt.engine.trt.locate import TensorRT
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
"""numpy types by TensorRT's names. INT4 and FP4 (two values per byte) are not supported as inputs and outputs."""

LayerTime = tuple[str, float]
"""The name of a layer, and its time in milliseconds."""

_WARMING = 10
"""Runs before layers are timed: the first ones are slower."""


def open_engine(trt: TensorRT, path: Path, *, gpu: int = 0, streams: int = 2, graphs: bool = True) -> EngineRunner:
    """Load a trusted engine on a GPU and return a runner for it.

    Args:
        trt: the TensorRT package that built the engine.
        path: the engine file. Loading runs code from it.
        gpu: number of the GPU in CUDA.
        streams: number of runs that can be in flight at the same time.
        graphs: whether to use CUDA graphs.

    Raises:
        EnvironmentUnableError: the GPU is missing, or this TensorRT does not load the engine on it.
        OutOfMemoryError: the GPU has too little memory for the engine's largest shapes.
        ModelError: the file is not an engine, or cannot be read.
        MissingDependencyError: neither cuda-python nor pycuda is installed.
    """
    device = open_device(gpu)
    try:
        program = load(trt, path, device)
    except BaseException:
        device.close()
        raise
    return EngineRunner(device, program, streams=streams, graphs=graphs)


def layer_times(trt: TensorRT, path: Path, feed: Mapping[str, npt.NDArray[Any]], runs: int) -> list[list[LayerTime]]:
    """Run a trusted engine on the first GPU, and return for each run the time of each layer in milliseconds.

    The layers run one after the other, and each is timed on its own: their sum is more than the time of the engine.

    Raises:
        TrtoptError: as `open_engine`; the feed does not fit the engine.
    """
    device = open_device(0)
    try:
        program = load(trt, path, device)
        program.profiler = profiler = _profiler(trt)
    except BaseException:
        device.close()
        raise
    found = []
    with EngineRunner(device, program, streams=1, graphs=False) as runner:
        for _ in range(_WARMING + runs):
            profiler.layers.clear()
            runner.run(feed)
            found.append(list(profiler.layers))
    return found[_WARMING:]


def load(trt: TensorRT, path: Path, device: Device) -> TensorRTProgram:
    """Load a trusted engine on `device`, which must be current in this thread. Raises the errors of `deserialize`."""
    # TensorRT does not report the size of the weights on the GPU, so it is measured.
    before = device.free_bytes()
    engine = deserialize(trt, path)
    return TensorRTProgram(trt, engine, before - device.free_bytes())


def deserialize(trt: TensorRT, path: Path) -> Any:
    """Return TensorRT's engine object (`ICudaEngine`) for a trusted file.

    Raises:
        ModelError: the file is not an engine, or cannot be read.
        EnvironmentUnableError: this TensorRT does not load the engine here.
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
    why = _take_errors(trt)
    if "magicTag" in why or not data:  # the magic tag at the start of the file is not that of this TensorRT
        raise ModelError(
            f"{path.name} is not an engine of {trt.title}",
            why="its header is that of another file format or version",
            fix="Build it again with this TensorRT",
        )
    raise EnvironmentUnableError(
        f"{trt.title} does not load {path.name} here",
        why=why or "it needs a supported NVIDIA GPU and its driver",
        fix="Build the engine with the TensorRT and for the GPU that runs it; trtopt doctor lists them",
    )


class TensorRTProgram:
    """Engine loaded by TensorRT; implements `Program`."""

    def __init__(self, trt: TensorRT, engine: Any, weights_size: int) -> None:
        self.where = trt.title
        self.weights_size = max(weights_size, 0)  # another process may have freed memory during the measurement
        self.workspace_size = int(engine.device_memory_size_v2 if trt.can.sized_memory else engine.device_memory_size)
        # TensorRT 8 allows one context per optimization profile, and trtopt builds engines with one profile.
        self.max_contexts = 0 if trt.can.shared_profiles else 1
        self._trt, self._engine = trt, engine
        self.profiler: Any = None
        # Only an execution context tells the sizes of outputs. The first execution reuses this one.
        self._spare: Any = _context(trt, engine)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_output = {name: engine.get_tensor_mode(name) == trt.module.TensorIOMode.OUTPUT for name in names}
        # Inputs first: the sizes of outputs follow from the largest input shapes, which `_input` sets.
        inputs = tuple(self._input(name) for name in names if not is_output[name])
        self.ports = (*inputs, *(self._output(name) for name in names if is_output[name]))

    def prepare(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], workspace: int) -> Execution:
        """Create an execution context for input shapes; see `Program`."""
        context, self._spare = self._spare or _context(self._trt, self._engine), None
        if self.profiler is not None:
            context.profiler = self.profiler
        # The context was created without memory. It must have some before it runs.
        if self._trt.can.sized_memory:
            context.set_device_memory(workspace, self.workspace_size)
        else:
            context.device_memory = workspace
        return _TensorRTExecution(self._trt, context, self.ports, shapes, addresses, self._take_back)

    def _take_back(self, context: Any) -> None:
        """Keep the context of a closed execution for the next one, if there can be only one."""
        if self.max_contexts == 1:
            self._spare = context

    def close(self) -> None:
        """Release the engine."""
        self._spare = self._engine = None

    def _input(self, name: str) -> Port:
        """Describe an input tensor, and set its largest shape in the spare context."""
        shape = tuple(self._engine.get_tensor_shape(name))
        low = high = shape
        if -1 in shape:  # dynamic: the shapes of the only optimization profile
            low, _, high = map(tuple, self._engine.get_tensor_profile_shape(name, 0))
        self._spare.set_input_shape(name, high)
        dtype = _dtype(self._engine.get_tensor_dtype(name), name)
        size = math.prod(high) * dtype.itemsize
        return Port(name=name, dtype=dtype, output=False, size=size, min=low, max=high, on_host=self._on_host(name))

    def _output(self, name: str) -> Port:
        """Describe an output tensor, given the largest shape of every input in the spare context."""
        return Port(
            name=name,
            dtype=_dtype(self._engine.get_tensor_dtype(name), name),
            output=True,
            size=int(self._spare.get_max_output_size(name)),
            on_host=self._on_host(name),
            sized_late=-1 in tuple(self._spare.get_tensor_shape(name)),  # unknown although all input shapes are set
        )

    def _on_host(self, name: str) -> bool:
        return bool(self._engine.get_tensor_location(name) == self._trt.module.TensorLocation.HOST)


class _TensorRTExecution:
    """Execution context with its shapes and addresses; implements `Execution`."""

    def __init__(
        self,
        trt: TensorRT,
        context: Any,
        ports: tuple[Port, ...],
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
        give_back: Callable[[Any], None],
    ) -> None:
        self._trt, self._context, self._give_back = trt, context, give_back
        self._outputs = tuple(port.name for port in ports if port.output)
        self._late: dict[str, Any] = {}
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise DataError(f"the engine rejects shape {list(shape)} of input {name}", why=_take_errors(trt))
        for port in ports:
            if port.sized_late:
                self._late[port.name] = _allocator(trt, addresses[port.name], port.size)
                accepted = context.set_output_allocator(port.name, self._late[port.name])
            else:
                accepted = context.set_tensor_address(port.name, addresses[port.name])
            if not accepted:
                raise CudaError(f"the engine rejects the address of {port.name}", why=_take_errors(trt))

    def outputs(self) -> Mapping[str, Shape]:
        """Return the shape of each output."""
        return {
            name: self._late[name].shape if name in self._late else tuple(self._context.get_tensor_shape(name))
            for name in self._outputs
        }

    def enqueue(self, stream: int) -> None:
        """Enqueue the computation on a stream."""
        if not self._context.execute_async_v3(stream):
            raise CudaError("the engine does not run", why=_take_errors(self._trt))

    def close(self) -> None:
        """Release the execution context."""
        self._give_back(self._context)
        self._context = None


def _context(trt: TensorRT, engine: Any) -> Any:
    """Create an execution context without device memory: all contexts of a stream share one workspace."""
    if trt.can.sized_memory:
        context = engine.create_execution_context(trt.module.ExecutionContextAllocationStrategy.USER_MANAGED)
    else:
        context = engine.create_execution_context_without_device_memory()
    if context is None:
        raise EnvironmentUnableError(f"{trt.title} cannot run the engine here", why=_take_errors(trt))
    return context


def _profiler(trt: TensorRT) -> Any:
    """Return a profiler whose `layers` are the names and times of the layers that have run."""

    class Profiler(trt.module.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers: list[LayerTime] = []

        def report_layer_time(self, name: str, ms: float) -> None:
            self.layers.append((name, ms))

    return Profiler()


def _allocator(trt: TensorRT, pointer: int, size: int) -> Any:
    """Return TensorRT's allocator for an output whose size depends on values.

    It always returns `pointer`, where `size` bytes are allocated for the largest shape.
    """

    class Allocator(trt.module.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.shape: Shape = ()

        def reallocate_output(self, _name: str, _memory: int, wanted: int, _alignment: int) -> int:
            return pointer if wanted <= size else 0  # a null pointer ends the run with an error

        # TensorRT 10 and later call this one.
        def reallocate_output_async(self, name: str, memory: int, wanted: int, alignment: int, _stream: int) -> int:
            return self.reallocate_output(name, memory, wanted, alignment)

        def notify_shape(self, _name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()


def _dtype(dtype: Any, name: str) -> np.dtype[Any]:
    known = str(dtype).rpartition(".")[2]
    if known not in _DTYPES:
        raise ModelError(
            f"type {dtype} of the engine's tensor {name} is not supported", why=f"trtopt supports {', '.join(_DTYPES)}"
        )
    return np.dtype(_DTYPES[known])


def _take_errors(trt: TensorRT) -> str:
    """Return the collected error messages of TensorRT, and clear them."""
    errors = logger(trt.module.__name__).errors
    text = "; ".join(dict.fromkeys(filter(None, map(clean, errors))))
    errors.clear()
    return text
