"""Thin interface to CUDA: devices, buffers, streams, events, graphs and kernels, through cuda-python or pycuda.

    with open_device() as device:
        stream = device.stream()
        data = device.allocate(array.nbytes)
        stream.to_device(data, array)
        kernel = device.compile('extern "C" __global__ void twice(float *x, int n) {...}', "twice")
        stream.launch(kernel, Launch(grid=(n // 256,), block=(256,)), data, np.int32(n))
        stream.to_host(array, data)
        stream.synchronize()

A device uses the primary context of its GPU, as onnxruntime's CUDA provider and torch do, so that pointers and streams
can be exchanged with them. Closing a device releases all that it created, newest first; closing twice is harmless. A
device belongs to the thread that opened it. Other threads can use it inside `Device.current`.

Touches: the GPU. Importing this module imports neither package.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from trtopt.engine.cuda.backend import Array, Backend, CudaError, Launch
from trtopt.engine.cuda.objects import Buffer, Event, Graph, Kernel, PinnedBuffer, Resource, Stream
from trtopt.errors import EnvironmentUnableError, OutOfMemoryError, UsageError
from trtopt.requires import require

__all__ = [
    "PACKAGES",
    "Array",
    "Buffer",
    "CudaError",
    "Device",
    "DeviceInfo",
    "Event",
    "Graph",
    "Kernel",
    "Launch",
    "PinnedBuffer",
    "Stream",
    "open_device",
]

PACKAGES = ("cuda-python", "pycuda")
"""Supported CUDA packages, in order of preference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """Properties of a GPU.

    `driver` is the newest CUDA version that the driver supports, such as `13.0`; `package` names the CUDA package in
    use, with its version.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    driver: str
    package: str


class Device:
    """Open GPU, which owns all resources created on it. `open_device` opens it."""

    def __init__(self, backend: Backend, index: int) -> None:
        self.backend = backend
        self.resources: dict[int, Resource] = {}  # by id(), in order of creation
        self._context: Any = backend.retain(index)
        # From here on the context must be released if anything fails.
        try:
            name, capability = backend.describe(index)
            driver = backend.driver()
            self.info = DeviceInfo(
                index=index,
                name=name,
                compute_capability=capability,
                total_bytes=backend.memory()[1],
                driver=f"{driver // 1000}.{driver % 1000 // 10}",
                package=backend.version(),
            )
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device usable inside the block, in a thread other than the one that opened it."""
        before = self.backend.activate(self._context)
        try:
            yield
        finally:
            self.backend.deactivate(before)

    def free_bytes(self) -> int:
        """Return the free memory of the GPU in bytes. Memory used by other processes counts as used."""
        return self.backend.memory()[0]

    def allocate(self, size: int) -> Buffer:
        """Allocate `size` bytes of device memory.

        Raises:
            OutOfMemoryError: the GPU has no free block of that size.
        """
        try:
            return Buffer(self, size)
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"GPU {self.info.index} cannot allocate {_mib(size)}",
                why=f"{_mib(self.free_bytes())} of {_mib(self.info.total_bytes)} are free",
                fix="Use a smaller batch, or stop other programs that use the GPU",
            ) from error

    def pinned(self, size: int) -> PinnedBuffer:
        """Allocate `size` bytes of page-locked host memory.

        Raises:
            OutOfMemoryError: the machine cannot lock that much memory.
        """
        try:
            return PinnedBuffer(self, size)
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"cannot allocate {_mib(size)} of page-locked memory",
                why="the machine cannot lock that much",
                fix="Use a smaller batch",
            ) from error

    def stream(self) -> Stream:
        """Create a stream that does not synchronize with the default stream."""
        return Stream(self)

    def event(self) -> Event:
        """Create an event that records the time."""
        return Event(self)

    def compile(self, source: str, name: str, options: tuple[str, ...] = ()) -> Kernel:
        """Compile CUDA C++ for this GPU and load a kernel from it.

        Args:
            source: the CUDA C++ code.
            name: the kernel, declared as `extern "C" __global__`.
            options: options of the compiler, such as `-DBINS=2048`.

        Raises:
            CudaError: the code does not compile; the message contains the compiler's first error.
            EnvironmentUnableError: the compiler does not support this GPU.
            MissingDependencyError: the compiler is missing: NVRTC for cuda-python, nvcc for pycuda.
        """
        return Kernel(self, self.backend.compile(source, self.info.compute_capability, options), name)

    def close(self) -> None:
        """Release all resources, newest first, then the GPU. Further calls do nothing."""
        context, self._context = self._context, None
        if context is None:
            return
        # Newest first: a graph, for example, must go before the stream and the buffers that it uses.
        for resource in reversed(list(self.resources.values())):
            resource.close()
        self.backend.release(context)

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_device(index: int = 0, package: str = "") -> Device:
    """Open a GPU.

    Args:
        index: number of the GPU in CUDA.
        package: one of `PACKAGES`; "" for cuda-python if it is installed, else pycuda.

    Raises:
        EnvironmentUnableError: the driver is missing or too old for the package, or the GPU does not exist.
        MissingDependencyError: neither package is installed.
        UsageError: `package` is not one of `PACKAGES`.
    """
    backend = _backend(package)
    count = backend.start()
    if not 0 <= index < count:
        raise EnvironmentUnableError(
            f"there is no GPU {index}" if count else "there is no GPU",
            why=f"the NVIDIA driver lists {count or 'none'}" + (", counted from 0" if count else ""),
            fix="" if count else "Check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    return Device(backend, index)


def _backend(package: str) -> Backend:
    """Return the module for a package, or for the preferred installed one if `package` is empty."""
    if package not in ("", *PACKAGES):
        raise UsageError(f"unknown CUDA package {package!r}", fix=f"Choose {' or '.join(PACKAGES)}")
    # `find_spec` looks for a package without importing it.
    has_pycuda = importlib.util.find_spec("pycuda") is not None
    if package == "pycuda" or (not package and has_pycuda and not _has_cuda_python()):
        require("pycuda")
        from trtopt.engine.cuda import pycuda as cuda_pycuda

        return cuda_pycuda
    require("cuda.bindings.driver")
    from trtopt.engine.cuda import python as cuda_python

    return cuda_python


def _has_cuda_python() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # raised if the parent package `cuda` is missing, too
        return False


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
