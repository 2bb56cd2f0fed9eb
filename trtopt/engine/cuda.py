"""CUDA in one thin seam: devices, buffers, streams, events, graphs and kernels, on cuda-python or else on pycuda.

    with open_device() as device:
        stream = device.stream()
        data = device.allocate(array.nbytes)
        stream.to_device(data, array)
        kernel = device.compile('extern "C" __global__ void twice(float *x, int n) {...}', "twice")
        stream.launch(kernel, Launch(grid=(n // 256,), block=(256,)), data, np.int32(n))
        stream.to_host(array, data)
        stream.synchronize()

A device is used in the primary context of its GPU, the one that onnxruntime's CUDA provider and torch use too: pointers
and streams may be exchanged with them. What a device made is closed with it, the newest first; closing twice is
harmless. All of it belongs to the thread that opened the device; another thread uses it in `Device.current`.

Touches: the GPU. Importing this module imports neither package.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from trtopt.engine.cuda_backend import Array, Backend, CudaError, Launch
from trtopt.engine.cuda_objects import Buffer, Event, Graph, Held, Kernel, PinnedBuffer, Stream
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
"""What the seam can stand on, in the order in which it is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """A GPU. `driver` is the newest CUDA that its driver supports, as `13.0`; `package` is what speaks to it."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    driver: str
    package: str


class Device:
    """A GPU, and all that was made on it. Open it with `open_device`."""

    def __init__(self, backend: Backend, index: int) -> None:
        self.backend = backend
        self.held: dict[int, Held] = {}
        self._context: Any = backend.retain(index)
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
        """Let the calling thread use the device inside the block; the one that opened it need not."""
        before = self.backend.activate(self._context)
        try:
            yield
        finally:
            self.backend.deactivate(before)

    def free_bytes(self) -> int:
        """Memory that is free now, of all processes' view."""
        return self.backend.memory()[0]

    def allocate(self, size: int) -> Buffer:
        """Allocate device memory, in bytes.

        Raises:
            OutOfMemoryError: there is not that much in one piece.
        """
        try:
            return Buffer(self, size)
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"GPU {self.info.index} has no memory for {_mib(size)}",
                why=f"{_mib(self.free_bytes())} of {_mib(self.info.total_bytes)} are free",
                fix="Take a smaller batch, or end what else uses the GPU",
            ) from error

    def pinned(self, size: int) -> PinnedBuffer:
        """Allocate page-locked host memory, in bytes.

        Raises:
            OutOfMemoryError: the machine cannot lock that much.
        """
        try:
            return PinnedBuffer(self, size)
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"no {_mib(size)} of page-locked memory",
                why="the machine cannot lock that much",
                fix="Take a smaller batch",
            ) from error

    def stream(self) -> Stream:
        """Make a stream; it does not wait for the default stream, nor that for it."""
        return Stream(self)

    def event(self) -> Event:
        """Make an event."""
        return Event(self)

    def compile(self, source: str, name: str, options: tuple[str, ...] = ()) -> Kernel:
        """Compile CUDA C++ for this GPU and load the kernel `name`, which is declared `extern "C" __global__`.

        `options` are the compiler's, `-DBINS=2048` for one.

        Raises:
            CudaError: it does not compile; the message holds the compiler's first error.
            EnvironmentUnableError: there is no compiler: NVRTC with cuda-python, nvcc with pycuda.
        """
        return Kernel(self, self.backend.compile(source, self.info.compute_capability, options), name)

    def close(self) -> None:
        """Release all that was made, the newest first, then the GPU. A second time does nothing."""
        context, self._context = self._context, None
        if context is None:
            return
        for held in reversed(list(self.held.values())):
            held.close()
        self.backend.release(context)

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_device(index: int = 0, package: str = "") -> Device:
    """Open a GPU with cuda-python, else pycuda, or with the `package` named.

    Raises:
        EnvironmentUnableError: there is no driver, it is too old for the package, or there is no such GPU.
        MissingDependencyError: neither package is installed.
        UsageError: `package` is not one of `PACKAGES`.
    """
    backend = _backend(package)
    count = backend.start()
    if not 0 <= index < count:
        raise EnvironmentUnableError(
            f"there is no GPU {index}" if count else "there is no GPU",
            why=f"the NVIDIA driver lists {count or 'none'}" + (", counted from 0" if count else ""),
            fix="" if count else "Look at nvidia-smi and at CUDA_VISIBLE_DEVICES",
        )
    return Device(backend, index)


def _backend(package: str) -> Backend:
    if package not in ("", *PACKAGES):
        raise UsageError(f"unknown CUDA package {package!r}", fix=f"Choose {' or '.join(PACKAGES)}")
    has_pycuda = importlib.util.find_spec("pycuda") is not None
    if package == "pycuda" or (not package and has_pycuda and not _has_cuda_python()):
        require("pycuda")
        from trtopt.engine import cuda_pycuda

        return cuda_pycuda
    require("cuda.bindings.driver")
    from trtopt.engine import cuda_python

    return cuda_python


def _has_cuda_python() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
