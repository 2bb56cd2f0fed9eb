"""What can be made on a device of `engine.cuda`: memory, streams, events, kernels, graphs. A `Device` makes them.

Touches: the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtopt.engine.cuda_backend import Array, CudaError, Launch

if TYPE_CHECKING:
    from typing_extensions import Self

    from trtopt.engine.cuda import Device


class Held:
    """Something of a device that must be released, once: by `close`, at the end of a `with`, or with the device."""

    def __init__(self, device: Device, handle: Any, release: Callable[[Any], None]) -> None:
        self.handle = handle
        self._device, self._release = device, release
        device.held[id(self)] = self

    @property
    def closed(self) -> bool:
        """Whether it was released."""
        return self.handle is None

    def close(self) -> None:
        """Release it. A second time does nothing."""
        handle, self.handle = self.handle, None
        if handle is not None:
            del self._device.held[id(self)]
            self._release(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Buffer(Held):
    """Device memory: `pointer` is its address, `size` its bytes."""

    def __init__(self, device: Device, size: int) -> None:
        handle, self.pointer = device.backend.allocate(max(size, 1))
        self.size = size
        super().__init__(device, handle, device.backend.free)


class PinnedBuffer(Held):
    """Page-locked host memory, which the GPU copies from and to by itself. No array over it outlives `close`."""

    def __init__(self, device: Device, size: int) -> None:
        handle, self._bytes = device.backend.allocate_host(max(size, 1))
        self.size = size
        super().__init__(device, handle, device.backend.free_host)

    @property
    def address(self) -> int:
        """Where it is, on the host."""
        return int(self._bytes.ctypes.data)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """The start of it as an array, sharing the memory.

        Raises:
            ValueError: it is closed, or smaller than the array.
        """
        wanted = np.dtype(dtype)
        size = math.prod(shape) * wanted.itemsize
        _check_room(self, size)
        return self._bytes[:size].view(wanted).reshape(shape)


class Event(Held):
    """A mark in a stream, which takes the time when the GPU comes to it."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, device.backend.create_event(), device.backend.destroy_event)

    def synchronize(self) -> None:
        """Wait until the GPU came to it."""
        self._device.backend.wait_event(self.handle)

    def since(self, start: Event) -> float:
        """Milliseconds between `start` and this one; the GPU must have come to both."""
        return self._device.backend.elapsed(start.handle, self.handle)


class Kernel(Held):
    """A compiled kernel."""

    def __init__(self, device: Device, image: bytes, name: str) -> None:
        super().__init__(device, device.backend.load(image, name), device.backend.unload)


class Graph(Held):
    """Work that was captured from a stream, to be launched again in one call."""

    def __init__(self, device: Device, handle: Any) -> None:
        super().__init__(device, handle, device.backend.destroy_graph)


class Stream(Held):
    """A queue of work; `pointer` is its address, for libraries that take one. Queues run beside each other."""

    def __init__(self, device: Device) -> None:
        handle, self.pointer = device.backend.create_stream()
        super().__init__(device, handle, device.backend.destroy_stream)

    def to_device(self, target: Buffer | int, source: Array) -> None:
        """Copy a contiguous array into device memory. It waits for nothing only if the array is page-locked.

        Raises:
            ValueError: the array is not contiguous, or larger than the buffer.
        """
        data = _flat(source)
        self._device.backend.to_device(_pointer(target, data.nbytes), data, self.handle)

    def to_host(self, target: Array, source: Buffer | int) -> None:
        """Copy device memory into a contiguous array, which is whole after `synchronize`.

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
        """Launch a kernel. Numbers are given as numpy scalars of the parameter's type, pointers as `np.uint64`."""
        values = tuple(np.uint64(each.pointer) if isinstance(each, Buffer) else each for each in arguments)
        self._device.backend.launch(kernel.handle, shape, self.handle, values)

    def record(self, event: Event) -> Event:
        """Let the event come when all that was enqueued before it is done; return it."""
        self._device.backend.record(event.handle, self.handle)
        return event

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on wait for an event of another stream. The host does not wait."""
        self._device.backend.wait(self.handle, event.handle)

    def synchronize(self) -> None:
        """Wait until all work of this stream is done.

        Raises:
            CudaError: some of it failed.
        """
        self._device.backend.synchronize(self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Call `work`, which enqueues on this stream; nothing of it runs, it is returned as a graph.

        Raises:
            CudaError: the work cannot be captured (it waits for the GPU), or the package knows no graphs.
        """
        backend = self._device.backend
        if not backend.GRAPHS:
            raise CudaError("no CUDA graph can be captured", why=f"{backend.version()} has none")
        backend.begin_capture(self.handle)
        try:
            work()
        except BaseException:  # a stream left in capture would refuse all other work
            if (partial := backend.end_capture(self.handle)) is not None:
                backend.destroy_graph(partial)
            raise
        graph = backend.end_capture(self.handle)
        if graph is None:
            raise CudaError("no CUDA graph can be captured", why="the work enqueued nothing, or waited for the GPU")
        return Graph(self._device, graph)

    def replay(self, graph: Graph) -> None:
        """Enqueue all that a graph holds."""
        self._device.backend.replay(graph.handle, self.handle)


def _flat(array: Array) -> Array:
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    return array.reshape(-1).view(np.uint8)


def _pointer(memory: Buffer | int, size: int) -> int:
    if isinstance(memory, int):
        return memory
    _check_room(memory, size)
    return memory.pointer


def _check_room(memory: Buffer | PinnedBuffer, size: int) -> None:
    if memory.closed or size > memory.size:
        raise ValueError(f"{size} bytes wanted of {'a closed buffer' if memory.closed else f'{memory.size}'}")
