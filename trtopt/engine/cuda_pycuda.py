"""CUDA through pycuda, with nvcc for kernels. See `engine.cuda`. pycuda captures no CUDA graphs.

Touches: the GPU; pycuda keeps compiled kernels in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from trtopt.engine.cuda_backend import Array, CudaError, Launch
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, OutOfMemoryError

GRAPHS = False

_PLAIN_SHARED_BYTES = 48 * 1024
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING of cuda.h, for which pycuda has no name."""


def _cuda() -> Any:
    return importlib.import_module("pycuda.driver")


@contextlib.contextmanager
def _said() -> Iterator[Any]:
    """Give pycuda's driver module; what it raises becomes an error of ours."""
    cuda = _cuda()
    try:
        yield cuda
    except cuda.MemoryError as error:
        raise OutOfMemoryError("the GPU's memory is exhausted", why=str(error)) from error
    except cuda.Error as error:
        raise CudaError("a CUDA call failed", why=str(error)) from error


def start() -> int:
    """Initialise CUDA; return how many GPUs there are."""
    try:
        cuda = _cuda()
    except ImportError as error:
        if "libcuda" in str(error):
            raise EnvironmentUnableError(
                "there is no NVIDIA driver", why="libcuda cannot be loaded", fix="Run on a machine with an NVIDIA GPU"
            ) from error
        raise MissingDependencyError(
            "pycuda cannot be imported",
            why=str(error),
            fix="Install cuda-python in its place: pip install 'trtopt[gpu]'",
        ) from error
    wanted = cuda.get_version()[0]
    found = driver()
    if found // 1000 < wanted:
        raise EnvironmentUnableError(
            "the NVIDIA driver is too old",
            why=f"it supports CUDA {found // 1000}.{found % 1000 // 10}, and {version()} was built for CUDA {wanted}",
            fix="Update the driver, or build pycuda with an older CUDA toolkit",
        )
    try:
        cuda.init()
    except cuda.Error as error:
        if "no device" in str(error) or "no CUDA-capable device" in str(error):
            return 0
        raise EnvironmentUnableError("CUDA does not start", why=str(error), fix="Look at nvidia-smi") from error
    return int(cuda.Device.count())


def version() -> str:
    """The package and its version."""
    return f"pycuda {importlib.import_module('pycuda').VERSION_TEXT}"


def driver() -> int:
    """The newest CUDA that the driver supports."""
    return int(_cuda().get_driver_version())


@cache
def _primary(index: int) -> Any:
    # Held to the end of the process: pycuda's `detach` would leave it on CUDA's stack of contexts, one more each time.
    with _said() as cuda:
        return cuda.Device(index).retain_primary_context()


def retain(index: int) -> Any:
    """Hold the primary context and make it current."""
    return activate(_primary(index))


def activate(context: Any) -> Any:
    """Make the context the calling thread's; return it."""
    with _said():
        context.push()
        return context


def deactivate(before: Any) -> None:
    """Give the thread back the context that it had: pycuda ends the process if a thread ends without."""
    with contextlib.suppress(_cuda().Error):
        before.pop()


def release(context: Any) -> None:
    """Give the thread back the context that it had."""
    deactivate(context)


def describe(index: int) -> tuple[str, tuple[int, int]]:
    """Name and compute capability."""
    with _said() as cuda:
        gpu = cuda.Device(index)
        major, minor = gpu.compute_capability()
        return gpu.name(), (major, minor)


def memory() -> tuple[int, int]:
    """Free and total bytes."""
    with _said() as cuda:
        free_bytes, total = cuda.mem_get_info()
        return int(free_bytes), int(total)


def allocate(size: int) -> tuple[Any, int]:
    """Allocate device memory."""
    with _said() as cuda:
        handle = cuda.mem_alloc(size)
        return handle, int(handle)


def free(handle: Any) -> None:
    """Free device memory."""
    with contextlib.suppress(_cuda().Error):
        handle.free()


def allocate_host(size: int) -> tuple[Any, Array]:
    """Allocate page-locked memory."""
    with _said() as cuda:
        array = cuda.pagelocked_empty(size, np.uint8)
        return array.base, array


def free_host(handle: Any) -> None:
    """Free page-locked memory."""
    with contextlib.suppress(_cuda().Error):
        handle.free()


def create_stream() -> tuple[Any, int]:
    """Make a stream."""
    with _said() as cuda:
        stream = cuda.Stream(_NON_BLOCKING)
        return stream, int(stream.handle)


def destroy_stream(stream: Any) -> None:
    """Nothing: pycuda destroys a stream, an event and a module with the last reference to it."""


def synchronize(stream: Any) -> None:
    """Wait for a stream."""
    with _said():
        stream.synchronize()


def to_device(pointer: int, data: Array, stream: Any) -> None:
    """Enqueue a copy to the device."""
    with _said() as cuda:
        cuda.memcpy_htod_async(pointer, data, stream)


def to_host(data: Array, pointer: int, stream: Any) -> None:
    """Enqueue a copy to the host."""
    with _said() as cuda:
        cuda.memcpy_dtoh_async(data, pointer, stream)


def on_device(target: int, source: int, size: int, stream: Any) -> None:
    """Enqueue a copy on the device."""
    with _said() as cuda:
        cuda.memcpy_dtod_async(target, source, size, stream)


def fill(pointer: int, value: int, size: int, stream: Any) -> None:
    """Enqueue a fill."""
    with _said() as cuda:
        cuda.memset_d8_async(pointer, value, size, stream)


def create_event() -> Any:
    """Make an event."""
    with _said() as cuda:
        return cuda.Event()


def destroy_event(event: Any) -> None:
    """Nothing: see `destroy_stream`."""


def record(event: Any, stream: Any) -> None:
    """Enqueue an event."""
    with _said():
        event.record(stream)


def wait_event(event: Any) -> None:
    """Wait for an event on the host."""
    with _said():
        event.synchronize()


def elapsed(start: Any, end: Any) -> float:
    """Milliseconds between two events."""
    with _said():
        return float(end.time_since(start))


def wait(stream: Any, event: Any) -> None:
    """Let a stream wait for an event."""
    with _said():
        stream.wait_for_event(event)


def compile(source: str, architecture: tuple[int, int], options: tuple[str, ...]) -> bytes:
    """Compile with nvcc, for the GPU."""
    compiler: Any = importlib.import_module("pycuda.compiler")
    target = f"sm_{architecture[0]}{architecture[1]}"
    try:
        return bytes(compiler.compile(source, options=list(options), arch=target, no_extern_c=True))
    except _cuda().CompileError as error:
        lines = [line.strip() for line in str(error.stderr or error.stdout or "").splitlines() if line.strip()]
        why = next((line for line in lines if "error" in line), lines[0] if lines else "nvcc does not say why")
        raise CudaError("a CUDA kernel does not compile", why=why) from error
    except (OSError, compiler.ExecError) as error:
        raise MissingDependencyError(
            "kernels cannot be compiled", why="nvcc, which pycuda calls, is not there", fix="Install the CUDA toolkit"
        ) from error


def load(image: bytes, name: str) -> Any:
    """Load a kernel."""
    with _said() as cuda:
        return cuda.module_from_buffer(image).get_function(name)


def unload(kernel: Any) -> None:
    """Nothing: see `destroy_stream`."""


def launch(kernel: Any, shape: Launch, stream: Any, arguments: tuple[np.generic, ...]) -> None:
    """Enqueue a kernel."""
    grid, block = ((*size, 1, 1)[:3] for size in (shape.grid, shape.block))
    with _said() as cuda:
        if shape.shared_bytes > _PLAIN_SHARED_BYTES:
            kernel.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shape.shared_bytes)
        kernel(*arguments, grid=grid, block=block, shared=shape.shared_bytes, stream=stream)


def begin_capture(stream: Any) -> None:  # noqa: ARG001
    """Refuse."""
    raise CudaError("no CUDA graph can be captured", why=f"{version()} has none")


def end_capture(stream: Any) -> Any:
    """Refuse."""
    begin_capture(stream)


def replay(graph: Any, stream: Any) -> None:  # noqa: ARG001
    """Refuse."""
    begin_capture(stream)


def destroy_graph(graph: Any) -> None:
    """Nothing: there is none."""
