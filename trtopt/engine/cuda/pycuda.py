"""CUDA backend on pycuda, with nvcc to compile kernels. pycuda does not support CUDA graphs.

Implements `cuda_backend.Backend`, which documents these functions.

Touches: the GPU; pycuda keeps compiled kernels in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from trtopt.engine.cuda.backend import Array, CudaError, Launch
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, OutOfMemoryError

GRAPHS = False

_PLAIN_SHARED_BYTES = 48 * 1024  # as in `cuda_python`
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING of cuda.h, which pycuda does not define."""


def _cuda() -> Any:
    return importlib.import_module("pycuda.driver")


@contextlib.contextmanager
def _translated() -> Iterator[Any]:
    """Yield pycuda's driver module, and turn the errors that it raises into those of trtopt."""
    cuda = _cuda()
    try:
        yield cuda
    except cuda.MemoryError as error:
        raise OutOfMemoryError("the GPU's memory is exhausted", why=str(error)) from error
    except cuda.Error as error:
        raise CudaError("a CUDA call failed", why=str(error)) from error


def start() -> int:
    """Initialize CUDA and return the number of GPUs."""
    try:
        cuda = _cuda()
    except ImportError as error:
        if "libcuda" in str(error):
            raise EnvironmentUnableError(
                "no NVIDIA driver found", why="libcuda cannot be loaded", fix="Run on a machine with an NVIDIA GPU"
            ) from error
        raise MissingDependencyError(
            "pycuda cannot be imported",
            why=str(error),
            fix="Install cuda-python instead: pip install 'cuda-python[all]'",
        ) from error
    needed = cuda.get_version()[0]  # the CUDA toolkit that pycuda was built with
    supported = driver()
    if supported // 1000 < needed:
        newest = f"CUDA {supported // 1000}.{supported % 1000 // 10}"
        raise EnvironmentUnableError(
            "the NVIDIA driver is too old",
            why=f"it supports {newest}, and {version()} was built with CUDA {needed}",
            fix="Update the driver, or build pycuda with an older CUDA toolkit",
        )
    try:
        cuda.init()
    except cuda.Error as error:
        if "no device" in str(error) or "no CUDA-capable device" in str(error):
            return 0
        raise EnvironmentUnableError("CUDA does not start", why=str(error), fix="Check nvidia-smi") from error
    return int(cuda.Device.count())


def version() -> str:
    """Return the package and its version."""
    return f"pycuda {importlib.import_module('pycuda').VERSION_TEXT}"


def driver() -> int:
    """Return the newest CUDA version that the driver supports."""
    return int(_cuda().get_driver_version())


# Retained until the process ends: pycuda's `detach` would leave the context on CUDA's stack, one entry per call.
@cache
def _primary(index: int) -> Any:
    with _translated() as cuda:
        return cuda.Device(index).retain_primary_context()


def retain(index: int) -> Any:
    """Retain the primary context and make it current."""
    return activate(_primary(index))


def activate(context: Any) -> Any:
    """Make a context current in the calling thread, and return it."""
    with _translated():
        context.push()
        return context


def deactivate(before: Any) -> None:
    """Restore the previous context of the thread."""
    # pycuda aborts the process if a thread ends while its contexts are still on the stack.
    with contextlib.suppress(_cuda().Error):
        before.pop()


def release(context: Any) -> None:
    """Restore the previous context of the thread. The primary context itself is kept: see `_primary`."""
    deactivate(context)


def describe(index: int) -> tuple[str, tuple[int, int]]:
    """Return the name and the compute capability."""
    with _translated() as cuda:
        gpu = cuda.Device(index)
        major, minor = gpu.compute_capability()
        return gpu.name(), (major, minor)


def memory() -> tuple[int, int]:
    """Return the free and the total memory in bytes."""
    with _translated() as cuda:
        free_bytes, total = cuda.mem_get_info()
        return int(free_bytes), int(total)


def allocate(size: int) -> tuple[Any, int]:
    """Allocate device memory."""
    with _translated() as cuda:
        handle = cuda.mem_alloc(size)
        return handle, int(handle)


def free(handle: Any) -> None:
    """Free device memory."""
    with contextlib.suppress(_cuda().Error):
        handle.free()


def allocate_host(size: int) -> tuple[Any, Array]:
    """Allocate page-locked memory."""
    with _translated() as cuda:
        array = cuda.pagelocked_empty(size, np.uint8)
        return array.base, array  # the base owns the memory and can free it


def free_host(handle: Any) -> None:
    """Free page-locked memory."""
    with contextlib.suppress(_cuda().Error):
        handle.free()


def create_stream() -> tuple[Any, int]:
    """Create a stream."""
    with _translated() as cuda:
        stream = cuda.Stream(_NON_BLOCKING)
        return stream, int(stream.handle)


def destroy_stream(stream: Any) -> None:
    """Do nothing: pycuda destroys streams, events and modules with the last reference to them."""


def synchronize(stream: Any) -> None:
    """Block until a stream is complete."""
    with _translated():
        stream.synchronize()


def to_device(pointer: int, data: Array, stream: Any) -> None:
    """Enqueue a copy to the device."""
    with _translated() as cuda:
        cuda.memcpy_htod_async(pointer, data, stream)


def to_host(data: Array, pointer: int, stream: Any) -> None:
    """Enqueue a copy to the host."""
    with _translated() as cuda:
        cuda.memcpy_dtoh_async(data, pointer, stream)


def on_device(target: int, source: int, size: int, stream: Any) -> None:
    """Enqueue a copy on the device."""
    with _translated() as cuda:
        cuda.memcpy_dtod_async(target, source, size, stream)


def fill(pointer: int, value: int, size: int, stream: Any) -> None:
    """Enqueue a fill."""
    with _translated() as cuda:
        cuda.memset_d8_async(pointer, value, size, stream)


def create_event() -> Any:
    """Create an event."""
    with _translated() as cuda:
        return cuda.Event()


def destroy_event(event: Any) -> None:
    """Do nothing: see `destroy_stream`."""


def record(event: Any, stream: Any) -> None:
    """Enqueue an event."""
    with _translated():
        event.record(stream)


def wait_event(event: Any) -> None:
    """Block until an event has completed."""
    with _translated():
        event.synchronize()


def elapsed(start: Any, end: Any) -> float:
    """Return the milliseconds between two events."""
    with _translated():
        return float(end.time_since(start))


def wait(stream: Any, event: Any) -> None:
    """Make a stream wait for an event."""
    with _translated():
        stream.wait_for_event(event)


def compile(source: str, architecture: tuple[int, int], options: tuple[str, ...]) -> bytes:
    """Compile with nvcc for the GPU."""
    compiler: Any = importlib.import_module("pycuda.compiler")
    target = f"sm_{architecture[0]}{architecture[1]}"
    try:
        return bytes(compiler.compile(source, options=list(options), arch=target, no_extern_c=True))
    except _cuda().CompileError as error:
        lines = [line.strip() for line in str(error.stderr or error.stdout or "").splitlines() if line.strip()]
        why = next((line for line in lines if "error" in line), lines[0] if lines else "nvcc gives no reason")
        raise CudaError("a CUDA kernel does not compile", why=why) from error
    except (OSError, compiler.ExecError) as error:
        raise MissingDependencyError(
            "kernels cannot be compiled", why="nvcc, which pycuda calls, is missing", fix="Install the CUDA toolkit"
        ) from error


def load(image: bytes, name: str) -> Any:
    """Load a kernel."""
    with _translated() as cuda:
        return cuda.module_from_buffer(image).get_function(name)


def unload(kernel: Any) -> None:
    """Do nothing: see `destroy_stream`."""


def launch(kernel: Any, shape: Launch, stream: Any, arguments: tuple[np.generic, ...]) -> None:
    """Enqueue a kernel."""
    grid, block = ((*size, 1, 1)[:3] for size in (shape.grid, shape.block))
    with _translated() as cuda:
        if shape.shared_bytes > _PLAIN_SHARED_BYTES:
            kernel.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shape.shared_bytes)
        kernel(*arguments, grid=grid, block=block, shared=shape.shared_bytes, stream=stream)


def begin_capture(stream: Any) -> None:  # noqa: ARG001
    """Raise an error: pycuda does not support CUDA graphs."""
    raise CudaError("CUDA graphs are not available", why=f"{version()} does not support them")


def end_capture(stream: Any) -> Any:
    """Raise an error: see `begin_capture`."""
    begin_capture(stream)


def replay(graph: Any, stream: Any) -> None:  # noqa: ARG001
    """Raise an error: see `begin_capture`."""
    begin_capture(stream)


def destroy_graph(graph: Any) -> None:
    """Do nothing: there are no graphs."""
