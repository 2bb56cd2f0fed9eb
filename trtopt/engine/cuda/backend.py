"""Protocol between `engine.cuda` and the CUDA packages. `cuda_python` and `cuda_pycuda` implement it.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trtopt.errors import TrtoptError

Array = npt.NDArray[Any]


class CudaError(TrtoptError):
    """Failed CUDA call, other than for lack of memory: an invalid launch, a kernel that does not compile or crashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch configuration of a kernel.

    `grid` is the number of blocks and `block` the number of threads per block, each in one to three dimensions.
    `shared_bytes` is the dynamic shared memory per block.
    """

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int = 0


class Backend(Protocol):
    """Functions that a module for a CUDA package must have.

    Handles are opaque objects of the package; pointers are ints. Every function raises `CudaError` or
    `OutOfMemoryError` if a CUDA call fails, except for those that release something: their callers could not react.
    Functions that enqueue work return before the work has run.
    """

    GRAPHS: bool
    """True if the package supports CUDA graphs."""

    def start(self) -> int:
        """Initialize CUDA and return the number of GPUs.

        Raises:
            EnvironmentUnableError: the driver is missing, or too old for the package.
        """
        ...

    def version(self) -> str:
        """Return the package and its version, as in `cuda-python 13.0`."""
        ...

    def driver(self) -> int:
        """Return the newest CUDA version that the driver supports, in CUDA's encoding: 12040 is 12.4."""
        ...

    def retain(self, index: int) -> Any:
        """Retain the primary context of a GPU, make it current in this thread, and return its handle."""
        ...

    def activate(self, context: Any) -> Any:
        """Make a context current in the calling thread, and return a handle for `deactivate`."""
        ...

    def deactivate(self, before: Any) -> None:
        """Restore the context that was current in the thread before `activate`."""
        ...

    def release(self, context: Any) -> None:
        """Release a context, and restore the one that was current in the thread before `retain`."""
        ...

    def describe(self, index: int) -> tuple[str, tuple[int, int]]:
        """Return the name and the compute capability of a GPU."""
        ...

    def memory(self) -> tuple[int, int]:
        """Return the free and the total memory of the current GPU in bytes."""
        ...

    def allocate(self, size: int) -> tuple[Any, int]:
        """Allocate `size` bytes of device memory, and return the handle and the address."""
        ...

    def free(self, handle: Any) -> None:
        """Free device memory."""
        ...

    def allocate_host(self, size: int) -> tuple[Any, Array]:
        """Allocate `size` bytes of page-locked host memory, and return the handle and a uint8 array over it."""
        ...

    def free_host(self, handle: Any) -> None:
        """Free page-locked memory."""
        ...

    def create_stream(self) -> tuple[Any, int]:
        """Create a stream that does not synchronize with the default one, and return the handle and the address."""
        ...

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Block until all work of a stream is complete."""
        ...

    def to_device(self, pointer: int, data: Array, stream: Any) -> None:
        """Enqueue a copy of a contiguous uint8 array to the device."""
        ...

    def to_host(self, data: Array, pointer: int, stream: Any) -> None:
        """Enqueue a copy from the device into a contiguous uint8 array."""
        ...

    def on_device(self, target: int, source: int, size: int, stream: Any) -> None:
        """Enqueue a copy of `size` bytes from device memory to device memory."""
        ...

    def fill(self, pointer: int, value: int, size: int, stream: Any) -> None:
        """Enqueue setting `size` bytes of device memory to `value`."""
        ...

    def create_event(self) -> Any:
        """Create an event that records the time."""
        ...

    def destroy_event(self, event: Any) -> None:
        """Destroy an event."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue an event."""
        ...

    def wait_event(self, event: Any) -> None:
        """Block until an event has completed."""
        ...

    def elapsed(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two completed events."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Make all work enqueued on the stream from now on wait for an event. The host does not block."""
        ...

    def compile(self, source: str, architecture: tuple[int, int], options: tuple[str, ...]) -> bytes:
        """Compile CUDA C++ for a compute capability, and return the binary for `load`."""
        ...

    def load(self, image: bytes, name: str) -> Any:
        """Load a kernel from a compiled binary."""
        ...

    def unload(self, kernel: Any) -> None:
        """Unload a kernel and its code."""
        ...

    def launch(self, kernel: Any, shape: Launch, stream: Any, arguments: tuple[np.generic, ...]) -> None:
        """Enqueue a kernel."""
        ...

    def begin_capture(self, stream: Any) -> None:
        """Record what this thread enqueues on the stream from now on, instead of running it."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """Return the recorded work as a graph that can be replayed; None if there is none or it is invalid."""
        ...

    def replay(self, graph: Any, stream: Any) -> None:
        """Enqueue the work of a graph."""
        ...

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        ...
