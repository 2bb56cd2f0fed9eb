"""Fake CUDA backend on host memory, for machines without a GPU: work runs at once, or is recorded into a graph.

Device addresses are host addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from trtopt.engine.cuda.backend import Array, CudaError, Launch
from trtopt.errors import OutOfMemoryError


def has_driver() -> bool:
    """Return whether this machine has an NVIDIA driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def at(pointer: int, count: int, dtype: Any) -> Array:
    """Return the array at a device address."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), dtype)


class HostBackend:
    """Fake backend. `alive` has the unreleased handles in order of creation, `released` the kinds of the others."""

    GRAPHS = True

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.alive: dict[int, tuple[str, Any]] = {}
        self.released: list[str] = []
        self.launched: list[str] = []
        self._capturing: list[Callable[[], None]] | None = None
        self._ids = 0

    def _create(self, kind: str, content: Any = None) -> int:
        self._ids += 1
        self.alive[self._ids] = (kind, content)
        return self._ids

    def _release(self, handle: int) -> None:
        self.released.append(self.alive.pop(handle)[0])

    def _do(self, name: str, work: Callable[[], None]) -> None:
        if self._capturing is not None:
            self._capturing.append(work)
        else:
            self.launched.append(name)
            work()

    def start(self) -> int:
        return 1

    def version(self) -> str:
        return "host 1"

    def driver(self) -> int:
        return 13000

    def retain(self, index: int) -> Any:
        return self._create("context")

    def activate(self, context: Any) -> Any:
        return context

    def deactivate(self, before: Any) -> None: ...

    def release(self, context: Any) -> None:
        self._release(context)

    def describe(self, index: int) -> tuple[str, tuple[int, int]]:
        return "Host", (9, 0)

    def memory(self) -> tuple[int, int]:
        used = sum(content.nbytes for kind, content in self.alive.values() if kind == "memory")
        return self.room - used, self.room

    def allocate(self, size: int) -> tuple[Any, int]:
        if size > self.memory()[0]:
            raise OutOfMemoryError("exhausted")
        data = np.zeros(size, np.uint8)
        return self._create("memory", data), data.ctypes.data

    def free(self, handle: Any) -> None:
        self._release(handle)

    def allocate_host(self, size: int) -> tuple[Any, Array]:
        data = np.zeros(size, np.uint8)
        return self._create("pinned", data), data

    def free_host(self, handle: Any) -> None:
        self._release(handle)

    def create_stream(self) -> tuple[Any, int]:
        handle = self._create("stream")
        return handle, handle

    def destroy_stream(self, stream: Any) -> None:
        self._release(stream)

    def synchronize(self, stream: Any) -> None: ...

    def to_device(self, pointer: int, data: Array, stream: Any) -> None:
        self._do("to_device", lambda: np.copyto(at(pointer, data.nbytes, np.uint8), data))

    def to_host(self, data: Array, pointer: int, stream: Any) -> None:
        self._do("to_host", lambda: np.copyto(data, at(pointer, data.nbytes, np.uint8)))

    def on_device(self, target: int, source: int, size: int, stream: Any) -> None:
        self._do("on_device", lambda: np.copyto(at(target, size, np.uint8), at(source, size, np.uint8)))

    def fill(self, pointer: int, value: int, size: int, stream: Any) -> None:
        self._do("fill", lambda: at(pointer, size, np.uint8).fill(value))

    def create_event(self) -> Any:
        return self._create("event")

    def destroy_event(self, event: Any) -> None:
        self._release(event)

    def record(self, event: Any, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def elapsed(self, start: Any, end: Any) -> float:
        return 0.0

    def wait(self, stream: Any, event: Any) -> None: ...

    def compile(self, source: str, architecture: tuple[int, int], options: tuple[str, ...]) -> bytes:
        raise CudaError("a CUDA kernel does not compile", why="the fake backend has no compiler")

    def load(self, image: bytes, name: str) -> Any:
        return self._create("kernel")

    def unload(self, kernel: Any) -> None:
        self._release(kernel)

    def launch(self, kernel: Any, shape: Launch, stream: Any, arguments: tuple[np.generic, ...]) -> None: ...

    def enqueue(self, work: Callable[[], None]) -> None:
        """Enqueue the computation of a fake engine."""
        self._do("compute", work)

    def begin_capture(self, stream: Any) -> None:
        self._capturing = []

    def end_capture(self, stream: Any) -> Any:
        captured, self._capturing = self._capturing, None
        return self._create("graph", captured) if captured else None

    def replay(self, graph: Any, stream: Any) -> None:
        self.launched.append("replay")
        for work in self.alive[graph][1]:
            work()

    def destroy_graph(self, graph: Any) -> None:
        self._release(graph)
