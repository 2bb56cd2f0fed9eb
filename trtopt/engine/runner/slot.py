"""CUDA stream of `engine.runner` with buffers of its own, for one run at a time.

NVIDIA's guide ("CUDA Graphs" under best practices) requires an execution context for each captured graph, and allows
contexts that never run at the same time to share their memory. So a stream has one context for each set of input shapes
that occurs, and one workspace for all of them.

Touches: the GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from trtopt.engine import Times
from trtopt.engine.cuda.device import Array, Buffer, CudaError, Device, Event, Graph, PinnedBuffer, Stream
from trtopt.engine.runner.program import Execution, Program, Shape

if TYPE_CHECKING:
    from typing_extensions import Self

SHAPES_KEPT = 16
"""Number of execution contexts with graphs that a stream keeps; the least recently used one is released first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """Outputs of a run, and the times of its parts by the GPU's clock."""

    outputs: dict[str, Array]
    times: Times


@dataclass(slots=True)
class _Context:
    """Execution context for one set of input shapes. `graph` is None until it is captured."""

    execution: Execution
    runs: int = 0
    graph: Graph | None = None

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.execution.close()


class Slot:
    """CUDA stream with buffers of its own, for one run at a time."""

    def __init__(self, device: Device, program: Program) -> None:
        self._program = program
        self._contexts: OrderedDict[tuple[Any, ...], _Context] = OrderedDict()  # the least recently used one first
        self._running: tuple[_Context, Mapping[str, Shape]] | None = None
        # All buffers have the size of the largest shapes, so that no run allocates memory.
        with ExitStack() as resources:
            self._stream: Stream = resources.enter_context(device.stream())
            self._events: tuple[Event, ...] = tuple(resources.enter_context(device.event()) for _ in range(4))
            self._workspace: Buffer = resources.enter_context(device.allocate(program.workspace_size))
            self._device_side: dict[str, Buffer] = {
                port.name: resources.enter_context(device.allocate(port.size))
                for port in program.ports
                if not port.on_host
            }
            self._host_side: dict[str, PinnedBuffer] = {
                port.name: resources.enter_context(device.pinned(port.size)) for port in program.ports
            }
            # Released in reverse order: wait for the run, release the contexts, then free the memory that they use.
            resources.callback(self._release_contexts)
            resources.callback(self._wait)
            self._resources = resources.pop_all()

    def staging(self, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """Return the page-locked arrays from which inputs of these shapes are copied to the GPU."""
        return {
            port.name: self._host_side[port.name].array(shapes[port.name], port.dtype)
            for port in self._program.ports
            if not port.output
        }

    def begin(self, inputs: Mapping[str, Array], *, graphs: bool) -> str:
        """Enqueue a run, and return the reason why no graph can be captured, or ""."""
        context = self._context_for(inputs)
        staged = self.staging({name: array.shape for name, array in inputs.items()})
        for name, array in staged.items():
            if not _same(inputs[name], array):
                np.copyto(array, inputs[name], casting="same_kind")
        # The first run of a context is not captured: NVIDIA requires one run before, in which TensorRT sets itself up.
        not_captured = self._capture(context) if graphs and context.graph is None and context.runs > 0 else ""
        start, copied, computed, done = self._events
        self._stream.record(start)
        for name, array in staged.items():
            if name in self._device_side:
                self._stream.to_device(self._device_side[name], array)
        self._stream.record(copied)
        if context.graph is not None:
            self._stream.replay(context.graph)
        else:
            context.execution.enqueue(self._stream.pointer)
        self._stream.record(computed)
        context.runs += 1
        shapes = context.execution.outputs()
        self._copy_out(shapes, late=False)
        self._stream.record(done)
        self._running = context, shapes
        return not_captured

    def end(self, *, copy: bool) -> Ran:
        """Wait for the run, and return its outputs as copies or as views of this stream's memory."""
        assert self._running is not None
        (context, shapes), self._running = self._running, None
        start, copied, computed, done = self._events
        done.synchronize()
        # Outputs whose shapes depend on values can be copied only now that their sizes are known.
        if any(port.sized_late for port in self._program.ports):
            shapes = context.execution.outputs()
            self._copy_out(shapes, late=True)
            self._stream.record(done)
            done.synchronize()
        outputs = {
            port.name: self._host_side[port.name].array(shapes[port.name], port.dtype)
            for port in self._program.ports
            if port.output
        }
        return Ran(
            outputs={name: array.copy() for name, array in outputs.items()} if copy else outputs,
            times=Times(copy_in=copied.since(start), compute=computed.since(copied), copy_out=done.since(computed)),
        )

    def _copy_out(self, shapes: Mapping[str, Shape], *, late: bool) -> None:
        """Enqueue the copies of those outputs to the host that are `sized_late`, or of those that are not."""
        for port in self._program.ports:
            if port.output and not port.on_host and port.sized_late is late:
                target = self._host_side[port.name].array(shapes[port.name], port.dtype)
                self._stream.to_host(target, self._device_side[port.name])

    def _context_for(self, inputs: Mapping[str, Array]) -> _Context:
        """Return the execution context for the shapes of these inputs, and create it if it is new."""
        on_host = {port.name for port in self._program.ports if port.on_host}
        # The values of inputs on the host (shape tensors) are part of the key, as they determine shapes, too.
        key = tuple((name, array.shape, array.tobytes() if name in on_host else b"") for name, array in inputs.items())
        if key not in self._contexts:
            if len(self._contexts) == (self._program.max_contexts or SHAPES_KEPT):
                self._contexts.popitem(last=False)[1].close()
            addresses = {name: buffer.address for name, buffer in self._host_side.items() if name in on_host}
            addresses |= {name: buffer.pointer for name, buffer in self._device_side.items()}
            shapes = {name: array.shape for name, array in inputs.items()}
            self._contexts[key] = _Context(self._program.prepare(shapes, addresses, self._workspace.pointer))
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def _capture(self, context: _Context) -> str:
        """Capture the work of a context as its graph. Return "", or the reason if it cannot be captured."""
        try:
            context.graph = self._stream.capture(lambda: context.execution.enqueue(self._stream.pointer))
        except CudaError as error:
            return str(error)
        return ""

    def _wait(self) -> None:
        with suppress(CudaError):  # an error of the run belongs to `end`, not to closing
            self._stream.synchronize()

    def _release_contexts(self) -> None:
        while self._contexts:
            self._contexts.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()


def _same(array: Array, staged: Array) -> bool:
    """Return whether two arrays of the same shape have the same memory, dtype and strides."""
    return array.ctypes.data == staged.ctypes.data and array.dtype == staged.dtype and array.strides == staged.strides
