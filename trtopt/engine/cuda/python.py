"""CUDA backend on cuda-python (`cuda.bindings` 12.6 and later): the driver API; `nvrtc` compiles kernels.

Implements `cuda_backend.Backend`, which documents these functions.

Touches: the GPU.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from trtopt.engine.cuda.backend import Array, CudaError, Launch
from trtopt.engine.cuda.nvrtc import compile as compile
from trtopt.errors import EnvironmentUnableError, OutOfMemoryError
from trtopt.requires import require

GRAPHS = True

_PLAIN_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory available to every kernel; more must be requested (CUDA C++ guide, "Shared Memory")."""


@cache
def _cuda() -> Any:
    return require("cuda.bindings.driver")


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver API and return its result without the status: a tuple if there are several.

    Raises:
        OutOfMemoryError: the GPU's memory is exhausted.
        CudaError: the call failed for another reason.
    """
    status, *results = getattr(_cuda(), name)(*arguments)
    if int(status):
        if status == _cuda().CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfMemoryError("the GPU's memory is exhausted", why=name)
        raise CudaError(f"{name} failed", why=_describe_status(status))
    return results[0] if len(results) == 1 else tuple(results)


def _describe_status(status: Any) -> str:
    _, text = _cuda().cuGetErrorString(status)
    return f"{text.decode() if text else 'unknown error'} ({status.name})"


def start() -> int:
    """Initialize CUDA and return the number of GPUs."""
    cuda = _cuda()
    # The version can be read before cuInit: a driver that is too old is reported as such.
    try:
        supported = driver()
    except RuntimeError as error:  # the bindings raise it if libcuda is missing
        raise EnvironmentUnableError(
            "no NVIDIA driver found", why="libcuda cannot be loaded", fix="Run on a machine with an NVIDIA GPU"
        ) from error
    needed = int(version().split()[1].split(".")[0])
    if supported // 1000 < needed:
        raise EnvironmentUnableError(
            "the NVIDIA driver is too old",
            why=f"it supports CUDA {supported // 1000}.{supported % 1000 // 10}, and {version()} needs CUDA {needed}",
            fix=f"Update the driver, or pip install 'cuda-python<{needed}'",
        )
    status, *_ = cuda.cuInit(0)
    if status == cuda.CUresult.CUDA_ERROR_NO_DEVICE:
        return 0
    if int(status):
        raise EnvironmentUnableError("CUDA does not start", why=_describe_status(status), fix="Check nvidia-smi")
    return int(_call("cuDeviceGetCount"))


def version() -> str:
    """Return the package and its version."""
    return f"cuda-python {require('cuda.bindings').__version__}"


def driver() -> int:
    """Return the newest CUDA version that the driver supports."""
    return int(_call("cuDriverGetVersion"))


def retain(index: int) -> Any:
    """Retain the primary context and make it current."""
    gpu = _call("cuDeviceGet", index)
    primary = _call("cuDevicePrimaryCtxRetain", gpu)
    return primary, gpu, activate((primary,))


def activate(context: Any) -> Any:
    """Make a context current in the calling thread, and return the previous one."""
    before = _call("cuCtxGetCurrent")
    _call("cuCtxSetCurrent", context[0])
    return before


def deactivate(before: Any) -> None:
    """Restore the previous context of the thread."""
    _cuda().cuCtxSetCurrent(before)  # not `_call`: functions that release never raise


def release(context: Any) -> None:
    """Release the primary context."""
    _, gpu, before = context
    deactivate(before)
    _cuda().cuDevicePrimaryCtxRelease(gpu)


def describe(index: int) -> tuple[str, tuple[int, int]]:
    """Return the name and the compute capability."""
    gpu, keys = _call("cuDeviceGet", index), _cuda().CUdevice_attribute
    name = _call("cuDeviceGetName", 256, gpu).split(b"\0")[0].decode()
    major = _call("cuDeviceGetAttribute", keys.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu)
    minor = _call("cuDeviceGetAttribute", keys.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu)
    return name, (major, minor)


def memory() -> tuple[int, int]:
    """Return the free and the total memory in bytes."""
    free_bytes, total = _call("cuMemGetInfo")
    return int(free_bytes), int(total)


def allocate(size: int) -> tuple[Any, int]:
    """Allocate device memory."""
    handle = _call("cuMemAlloc", size)
    return handle, int(handle)


def free(handle: Any) -> None:
    """Free device memory."""
    _cuda().cuMemFree(handle)


def allocate_host(size: int) -> tuple[Any, Array]:
    """Allocate page-locked memory."""
    address = int(_call("cuMemHostAlloc", size, 0))
    return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def free_host(handle: Any) -> None:
    """Free page-locked memory."""
    _cuda().cuMemFreeHost(handle)


def create_stream() -> tuple[Any, int]:
    """Create a stream."""
    # Non-blocking: not synchronized with the default stream.
    stream = _call("cuStreamCreate", int(_cuda().CUstream_flags.CU_STREAM_NON_BLOCKING))
    return stream, int(stream)


def destroy_stream(stream: Any) -> None:
    """Destroy a stream."""
    _cuda().cuStreamDestroy(stream)


def synchronize(stream: Any) -> None:
    """Block until a stream is complete."""
    _call("cuStreamSynchronize", stream)


def to_device(pointer: int, data: Array, stream: Any) -> None:
    """Enqueue a copy to the device."""
    _call("cuMemcpyHtoDAsync", pointer, data.ctypes.data, data.nbytes, stream)


def to_host(data: Array, pointer: int, stream: Any) -> None:
    """Enqueue a copy to the host."""
    _call("cuMemcpyDtoHAsync", data.ctypes.data, pointer, data.nbytes, stream)


def on_device(target: int, source: int, size: int, stream: Any) -> None:
    """Enqueue a copy on the device."""
    _call("cuMemcpyDtoDAsync", target, source, size, stream)


def fill(pointer: int, value: int, size: int, stream: Any) -> None:
    """Enqueue a fill."""
    _call("cuMemsetD8Async", pointer, value, size, stream)


def create_event() -> Any:
    """Create an event."""
    return _call("cuEventCreate", int(_cuda().CUevent_flags.CU_EVENT_DEFAULT))


def destroy_event(event: Any) -> None:
    """Destroy an event."""
    _cuda().cuEventDestroy(event)


def record(event: Any, stream: Any) -> None:
    """Enqueue an event."""
    _call("cuEventRecord", event, stream)


def wait_event(event: Any) -> None:
    """Block until an event has completed."""
    _call("cuEventSynchronize", event)


def elapsed(start: Any, end: Any) -> float:
    """Return the milliseconds between two events."""
    return float(_call("cuEventElapsedTime", start, end))


def wait(stream: Any, event: Any) -> None:
    """Make a stream wait for an event."""
    _call("cuStreamWaitEvent", stream, event, 0)


def load(image: bytes, name: str) -> Any:
    """Load a kernel."""
    module = _call("cuModuleLoadData", image)
    try:
        return module, _call("cuModuleGetFunction", module, name.encode())
    except CudaError:
        _cuda().cuModuleUnload(module)
        raise


def unload(kernel: Any) -> None:
    """Unload a kernel."""
    _cuda().cuModuleUnload(kernel[0])


def launch(kernel: Any, shape: Launch, stream: Any, arguments: tuple[np.generic, ...]) -> None:
    """Enqueue a kernel."""
    function = kernel[1]
    if shape.shared_bytes > _PLAIN_SHARED_BYTES:
        key = _cuda().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _call("cuFuncSetAttribute", function, key, shape.shared_bytes)
    # cuLaunchKernel takes an array of pointers to the arguments, and copies the arguments before it returns.
    values = [np.asarray(argument) for argument in arguments]
    addresses = np.array([value.ctypes.data for value in values], np.uint64)
    grid, block = ((*size, 1, 1)[:3] for size in (shape.grid, shape.block))  # always three dimensions
    _call("cuLaunchKernel", function, *grid, *block, shape.shared_bytes, stream, addresses.ctypes.data, 0)


def begin_capture(stream: Any) -> None:
    """Begin to capture what this thread enqueues on a stream."""
    # In the default (global) mode, a call that waits for the GPU in any other thread would invalidate the capture.
    _call("cuStreamBeginCapture", stream, _cuda().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)


def end_capture(stream: Any) -> Any:
    """Return the captured work as an executable graph; None if there is none or it is invalid."""
    status, graph = _cuda().cuStreamEndCapture(stream)
    if int(status) or not int(graph):
        return None
    # Only the instantiated graph is needed from now on.
    try:
        return _call("cuGraphInstantiate", graph, 0)
    finally:
        _cuda().cuGraphDestroy(graph)


def replay(graph: Any, stream: Any) -> None:
    """Enqueue a graph."""
    _call("cuGraphLaunch", graph, stream)


def destroy_graph(graph: Any) -> None:
    """Destroy a graph."""
    _cuda().cuGraphExecDestroy(graph)
