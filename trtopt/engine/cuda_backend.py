"""What `engine.cuda` asks of a package that speaks CUDA. `cuda_python` and `cuda_pycuda` are the two there are.

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
    """A CUDA call failed for another reason than memory: a wrong launch, a kernel that does not compile or crashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a kernel is launched: blocks, threads a block (one to three numbers each), dynamic shared memory in bytes."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int = 0


class Backend(Protocol):
    """What a package that speaks CUDA is asked for: `cuda_python` and `cuda_pycuda` are modules with these functions.

    Handles are the package's own objects and opaque here; pointers are ints. Every function raises `CudaError`, or
    `OutOfMemoryError`, when CUDA refuses; those that release never raise, as there is nothing left to be done about it.
    """

    GRAPHS: bool

    def start(self) -> int:
        """Initialise CUDA; return how many GPUs there are. Raises EnvironmentUnableError: no driver, or too old."""
        ...

    def version(self) -> str:
        """The package and its version, as a table names it."""
        ...

    def driver(self) -> int:
        """The newest CUDA that the driver supports, as CUDA writes it: 12040 is 12.4."""
        ...

    def retain(self, index: int) -> Any:
        """Hold the primary context of a GPU and make it this thread's."""
        ...

    def activate(self, context: Any) -> Any:
        """Make the context the calling thread's; return what `deactivate` takes to give the thread back its own."""
        ...

    def deactivate(self, before: Any) -> None:
        """Give the thread back the context that it had."""
        ...

    def release(self, context: Any) -> None:
        """Let go of the context; the thread gets back the one that it had before."""
        ...

    def describe(self, index: int) -> tuple[str, tuple[int, int]]:
        """Name and compute capability of a GPU."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total memory of the current GPU in bytes."""
        ...

    def allocate(self, size: int) -> tuple[Any, int]:
        """Allocate device memory, in bytes; return its handle and its address."""
        ...

    def free(self, handle: Any) -> None:
        """Free device memory."""
        ...

    def allocate_host(self, size: int) -> tuple[Any, Array]:
        """Allocate page-locked host memory, in bytes; return its handle and a uint8 array over it."""
        ...

    def free_host(self, handle: Any) -> None:
        """Free page-locked memory."""
        ...

    def create_stream(self) -> tuple[Any, int]:
        """Make a stream that does not wait for the default one; return its handle and its address."""
        ...

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Wait until all work of the stream is done."""
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
        """Enqueue setting `size` bytes to `value`."""
        ...

    def create_event(self) -> Any:
        """Make an event that takes the time."""
        ...

    def destroy_event(self, event: Any) -> None:
        """Destroy an event."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue the event."""
        ...

    def wait_event(self, event: Any) -> None:
        """Wait on the host until the event came."""
        ...

    def elapsed(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that came."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is enqueued from now on wait for the event."""
        ...

    def compile(self, source: str, architecture: tuple[int, int], options: tuple[str, ...]) -> bytes:
        """Compile CUDA C++ for a compute capability; return what `load` takes."""
        ...

    def load(self, image: bytes, name: str) -> Any:
        """Load a kernel of compiled code."""
        ...

    def unload(self, kernel: Any) -> None:
        """Unload a kernel and its code."""
        ...

    def launch(self, kernel: Any, shape: Launch, stream: Any, arguments: tuple[np.generic, ...]) -> None:
        """Enqueue a kernel."""
        ...

    def begin_capture(self, stream: Any) -> None:
        """Collect what this thread enqueues on the stream instead of running it."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """Return what was collected, ready to be replayed; None if nothing that can be."""
        ...

    def replay(self, graph: Any, stream: Any) -> None:
        """Enqueue all that a graph holds."""
        ...

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        ...
