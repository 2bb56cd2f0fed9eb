"""Resources on a device of `engine.cuda`: memory, streams, events, kernels, graphs. `Device` creates them.

Touches: the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtopt.engine.cuda.backend import Array, CudaError, Launch

if TYPE_CHECKING:
    from typing_extensions import Self

    from trtopt.engine.cuda.device import Device


class Resource:
    """Resource that must be released exactly once: by `close`, at the end of a `with` block, or with its device."""

    def __init__(self, device: Device, handle: Any, release: Callable[[Any], None]) -> None:
        self.handle = handle
        self._device, self._release = device, release
        device.resources[id(self)] = self

    @property
    def closed(self) -> bool:
        """True after the resource was released."""
        return self.handle is None

    def close(self) -> None:
        """Release the resource. Further calls do nothing."""
        handle, self.handle = self.handle, None
        if handle is not None:
            del self._device.resources[id(self)]
            self._release(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Buffer(Resource):
    """Device memory of `size` bytes at the address `pointer`."""

    def __init__(self, device: Device, size: int) -> None:
        handle, self.pointer = device.backend.allocate(max(size, 1))  # CUDA rejects an allocation of 0 bytes
        self.size = size
        super().__init__(device, handle, device.backend.free)


class PinnedBuffer(Resource):
    """Page-locked host memory, which the GPU can copy from and to without the CPU.

    Arrays that share this memory must not be used after `close`.
    """

    def __init__(self, device: Device, size: int) -> None:
        handle, self._bytes = device.backend.allocate_host(max(size, 1))
        self.size = size
        super().__init__(device, handle, device.backend.free_host)

    @property
    def address(self) -> int:
        """Address of the buffer on the host."""
        return int(self._bytes.ctypes.data)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return the beginning of the buffer as an array that shares its memory.

        Raises:
            ValueError: the buffer is closed, or smaller than the array.
        """
        element = np.dtype(dtype)
        size = math.prod(shape) * element.itemsize
        _check_room(self, size)
        return self._bytes[:size].view(element).reshape(shape)


class Event(Resource):
    """Marker in a stream that records the time when the GPU reaches it."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, device.backend.create_event(), device.backend.destroy_event)

    def synchronize(self) -> None:
        """Block until the event has completed."""
        self._device.backend.wait_event(self.handle)

    def since(self, start: Event) -> float:
        """Return the milliseconds from the event `start` to this one. Both must have completed."""
        return self._device.backend.elapsed(start.handle, self.handle)


class Kernel(Resource):
    """Compiled kernel that is loaded on a device."""

    def __init__(self, device: Device, image: bytes, name: str) -> None:
        super().__init__(device, device.backend.load(image, name), device.backend.unload)


class Graph(Resource):
    """CUDA graph: work captured from a stream, which one call enqueues again."""

    def __init__(self, device: Device, handle: Any) -> None:
        super().__init__(device, handle, device.backend.destroy_graph)


class Stream(Resource):
    """Queue of work for the GPU. Different streams run concurrently.

    `pointer` is the address of the stream, for other libraries. Copies and launches return before they have run.
    """

    def __init__(self, device: Device) -> None:
        handle, self.pointer = device.backend.create_stream()
        super().__init__(device, handle, device.backend.destroy_stream)

    def to_device(self, target: Buffer | int, source: Array) -> None:
        """Copy a contiguous array into device memory.

        The copy is asynchronous only if the array is in page-locked memory, and must not be changed before it is done.

        Raises:
            ValueError: the array is not contiguous, or larger than the buffer.
        """
        data = _flat(source)
        self._device.backend.to_device(_pointer(target, data.nbytes), data, self.handle)

    def to_host(self, target: Array, source: Buffer | int) -> None:
        """Copy device memory into a contiguous array, which is complete after `synchronize`.

        Raises:
            ValueError: the array is not contiguous, or larger than the buffer.
        """
        data = _flat(target)
        self._device.backend.to_host(data, _pointer(source, data.nbytes), self.handle)

    def on_device(self, target: Buffer | int, source: Buffer | int, size: int) -> None:
        """Copy `size` bytes from device memory to device memory."""
        self._device.backend.on_device(_pointer(target, size), _pointer(source, size), size, self.handle)

    def fill(self, target: Buffer | int, size: int, value: int = 0) -> None:
        """Set `size` bytes of device memory to `value`."""
        self._device.backend.fill(_pointer(target, size), value, size, self.handle)

    def launch(self, kernel: Kernel, shape: Launch, *arguments: Buffer | np.generic) -> None:
        """Launch a kernel.

        Args:
            kernel: the kernel.
            shape: the launch configuration.
            arguments: buffers for pointers, and numpy scalars of exactly the type of each other parameter
                (`np.uint64` for an address).
        """
        values = tuple(
            np.uint64(argument.pointer) if isinstance(argument, Buffer) else argument for argument in arguments
        )
        self._device.backend.launch(kernel.handle, shape, self.handle, values)

    def record(self, event: Event) -> Event:
        """Enqueue an event, which completes after all work enqueued before it, and return it."""
        self._device.backend.record(event.handle, self.handle)
        return event

    def wait(self, event: Event) -> None:
        """Make all work enqueued from now on wait for an event of another stream. The host does not block."""
        self._device.backend.wait(self.handle, event.handle)

    def synchronize(self) -> None:
        """Block until all work of this stream is complete.

        Raises:
            CudaError: some of the work failed.
        """
        self._device.backend.synchronize(self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Return a CUDA graph of the work that `work` enqueues on this stream. The work itself does not run.

        Raises:
            CudaError: the work cannot be captured, as it waits for the GPU, or the package does not support graphs.
        """
        backend = self._device.backend
        if not backend.GRAPHS:
            raise CudaError("CUDA graphs are not available", why=f"{backend.version()} does not support them")
        backend.begin_capture(self.handle)
        try:
            work()
        except BaseException:
            # The capture must be ended in any case: a stream in capture mode runs nothing else.
            if (partial := backend.end_capture(self.handle)) is not None:
                backend.destroy_graph(partial)
            raise
        graph = backend.end_capture(self.handle)
        if graph is None:
            raise CudaError("the CUDA graph capture failed", why="the work enqueued nothing, or waited for the GPU")
        return Graph(self._device, graph)

    def replay(self, graph: Graph) -> None:
        """Enqueue the work of a graph."""
        self._device.backend.replay(graph.handle, self.handle)


def _flat(array: Array) -> Array:
    """Return a contiguous array as a uint8 array that shares its memory."""
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    return array.reshape(-1).view(np.uint8)


def _pointer(memory: Buffer | int, size: int) -> int:
    """Return the address of device memory. The size can be checked only for a `Buffer`."""
    if isinstance(memory, int):
        return memory
    _check_room(memory, size)
    return memory.pointer


def _check_room(memory: Buffer | PinnedBuffer, size: int) -> None:
    if memory.closed:
        raise ValueError("the buffer is closed")
    if size > memory.size:
        raise ValueError(f"{size} bytes do not fit into a buffer of {memory.size} bytes")
