"""CUDA through cuda-python (`cuda.bindings` 12.6 and later): the driver API, and NVRTC for kernels. See `engine.cuda`.

Touches: the GPU.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from trtopt.engine.cuda_backend import Array, CudaError, Launch
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, OutOfMemoryError
from trtopt.requires import require

GRAPHS = True

_PLAIN_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that any kernel may have; more must be asked for (CUDA C++ guide, "Shared Memory")."""


@cache
def _cuda() -> Any:
    return require("cuda.bindings.driver")


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver API; return its result, without the status (a tuple if there are several)."""
    status, *results = getattr(_cuda(), name)(*arguments)
    if int(status):
        if status == _cuda().CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfMemoryError("the GPU's memory is exhausted", why=name)
        raise CudaError(f"{name} failed", why=_words(status))
    return results[0] if len(results) == 1 else tuple(results)


def _words(status: Any) -> str:
    _, text = _cuda().cuGetErrorString(status)
    return f"{text.decode() if text else 'unknown error'} ({status.name})"


def start() -> int:
    """Initialise CUDA; return how many GPUs there are."""
    cuda = _cuda()
    try:
        found = driver()
    except RuntimeError as error:  # how the bindings say that there is no libcuda
        raise EnvironmentUnableError(
            "there is no NVIDIA driver", why="libcuda cannot be loaded", fix="Run on a machine with an NVIDIA GPU"
        ) from error
    wanted = int(version().split()[1].split(".")[0])
    if found // 1000 < wanted:
        raise EnvironmentUnableError(
            "the NVIDIA driver is too old",
            why=f"it supports CUDA {found // 1000}.{found % 1000 // 10}, and {version()} needs CUDA {wanted}",
            fix=f"Update the driver, or pip install 'cuda-python<{wanted}'",
        )
    status, *_ = cuda.cuInit(0)
    if status == cuda.CUresult.CUDA_ERROR_NO_DEVICE:
        return 0
    if int(status):
        raise EnvironmentUnableError("CUDA does not start", why=_words(status), fix="Look at nvidia-smi")
    return int(_call("cuDeviceGetCount"))


def version() -> str:
    """The package and its version."""
    return f"cuda-python {require('cuda.bindings').__version__}"


def driver() -> int:
    """The newest CUDA that the driver supports."""
    return int(_call("cuDriverGetVersion"))


def retain(index: int) -> Any:
    """Hold the primary context and make it current."""
    gpu = _call("cuDeviceGet", index)
    primary = _call("cuDevicePrimaryCtxRetain", gpu)
    return primary, gpu, activate((primary,))


def activate(context: Any) -> Any:
    """Make the context the calling thread's; return the one before."""
    before = _call("cuCtxGetCurrent")
    _call("cuCtxSetCurrent", context[0])
    return before


def deactivate(before: Any) -> None:
    """Give the thread back the context that it had."""
    _cuda().cuCtxSetCurrent(before)


def release(context: Any) -> None:
    """Let go of the primary context."""
    _, gpu, before = context
    deactivate(before)
    _cuda().cuDevicePrimaryCtxRelease(gpu)


def describe(index: int) -> tuple[str, tuple[int, int]]:
    """Name and compute capability."""
    gpu, keys = _call("cuDeviceGet", index), _cuda().CUdevice_attribute
    name = _call("cuDeviceGetName", 256, gpu).split(b"\0")[0].decode()
    major = _call("cuDeviceGetAttribute", keys.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu)
    return name, (major, _call("cuDeviceGetAttribute", keys.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu))


def memory() -> tuple[int, int]:
    """Free and total bytes."""
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
    """Make a stream."""
    stream = _call("cuStreamCreate", int(_cuda().CUstream_flags.CU_STREAM_NON_BLOCKING))
    return stream, int(stream)


def destroy_stream(stream: Any) -> None:
    """Destroy a stream."""
    _cuda().cuStreamDestroy(stream)


def synchronize(stream: Any) -> None:
    """Wait for a stream."""
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
    """Make an event."""
    return _call("cuEventCreate", int(_cuda().CUevent_flags.CU_EVENT_DEFAULT))


def destroy_event(event: Any) -> None:
    """Destroy an event."""
    _cuda().cuEventDestroy(event)


def record(event: Any, stream: Any) -> None:
    """Enqueue an event."""
    _call("cuEventRecord", event, stream)


def wait_event(event: Any) -> None:
    """Wait for an event on the host."""
    _call("cuEventSynchronize", event)


def elapsed(start: Any, end: Any) -> float:
    """Milliseconds between two events."""
    return float(_call("cuEventElapsedTime", start, end))


def wait(stream: Any, event: Any) -> None:
    """Let a stream wait for an event."""
    _call("cuStreamWaitEvent", stream, event, 0)


def compile(source: str, architecture: tuple[int, int], options: tuple[str, ...]) -> bytes:
    """Compile with NVRTC: machine code for the GPU, or PTX for the newest one that NVRTC knows if that is older."""
    nvrtc = require("cuda.bindings.nvrtc")
    try:
        _, known = nvrtc.nvrtcGetSupportedArchs()[:2]
    except RuntimeError as error:
        raise MissingDependencyError(
            "kernels cannot be compiled",
            why="NVRTC cannot be loaded",
            fix="Install it: pip install 'cuda-python[all]', or the CUDA toolkit",
        ) from error
    wanted = architecture[0] * 10 + architecture[1]
    native = wanted in known
    if wanted < min(known):  # CUDA 13 runs on Volta, and compiles for what came after it only
        raise EnvironmentUnableError(
            "kernels cannot be compiled for this GPU",
            why=f"its compute capability is {wanted / 10}, and NVRTC compiles for {min(known) / 10} and later",
            fix=f"Install an older one: pip install 'cuda-python[all]<{version().split()[1].split('.')[0]}'",
        )
    target = f"sm_{wanted}" if native else f"compute_{max(each for each in known if each < wanted)}"
    flags = [flag.encode() for flag in (f"--gpu-architecture={target}", *options)]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        if int(status):
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = bytearray(size)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CudaError("a CUDA kernel does not compile", why=_first_error(log.decode(errors="replace")))
        size_of, read = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if native else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        image = bytearray(size_of(program)[1])
        read(program, image)
        return bytes(image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.strip("\0").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "the compiler does not say why")


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
    # The driver reads each argument from its address, and has copied them all when the call returns.
    values = [np.asarray(argument) for argument in arguments]
    addresses = np.array([value.ctypes.data for value in values], np.uint64)
    grid, block = ((*size, 1, 1)[:3] for size in (shape.grid, shape.block))
    _call("cuLaunchKernel", function, *grid, *block, shape.shared_bytes, stream, addresses.ctypes.data, 0)


def begin_capture(stream: Any) -> None:
    """Begin to capture, in this thread only: another thread's calls may wait for the GPU as before."""
    _call("cuStreamBeginCapture", stream, _cuda().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)


def end_capture(stream: Any) -> Any:
    """Return the captured work, ready to be replayed; None if nothing that can be."""
    status, graph = _cuda().cuStreamEndCapture(stream)
    if int(status) or not int(graph):
        return None
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
