"""One stream of `engine.runner`, with buffers of its own: one run at a time.

NVIDIA's guide ("CUDA Graphs" under best practices) wants an execution context for each captured graph, and lets those
that never run at once share their memory: so it is here, for each shape that comes.

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

from trtopt.engine.cuda import Array, Buffer, CudaError, Device, Event, Graph, PinnedBuffer, Stream
from trtopt.engine.runner_program import Execution, Program, Shape

if TYPE_CHECKING:
    from typing_extensions import Self

SHAPES_KEPT = 16
"""Shapes whose execution contexts and graphs a stream keeps; the one not used for longest goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The outputs of one run, and the GPU's milliseconds for copying in, computing, and copying out."""

    outputs: dict[str, Array]
    copy_in: float
    compute: float
    copy_out: float


@dataclass(slots=True)
class _Lane:
    """A stream's execution for one set of shapes. `graph` is None until it is captured."""

    execution: Execution
    runs: int = 0
    graph: Graph | None = None

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.execution.close()


class Slot:
    """A stream with buffers of its own: one run at a time."""

    def __init__(self, device: Device, program: Program) -> None:
        self._program = program
        self._lanes: OrderedDict[tuple[Any, ...], _Lane] = OrderedDict()
        self._running: tuple[_Lane, Mapping[str, Shape]] | None = None
        with ExitStack() as held:
            self._stream: Stream = held.enter_context(device.stream())
            self._events: tuple[Event, ...] = tuple(held.enter_context(device.event()) for _ in range(4))
            self._workspace: Buffer = held.enter_context(device.allocate(program.workspace_size))
            self._device_side: dict[str, Buffer] = {
                port.name: held.enter_context(device.allocate(port.size)) for port in program.ports if not port.on_host
            }
            self._host_side: dict[str, PinnedBuffer] = {
                port.name: held.enter_context(device.pinned(port.size)) for port in program.ports
            }
            held.callback(self._drop_lanes)
            held.callback(self._settle)
            self._held = held.pop_all()

    def staging(self, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """The page-locked arrays that inputs of these shapes are copied to the GPU from."""
        return {
            port.name: self._host_side[port.name].array(shapes[port.name], port.dtype)
            for port in self._program.ports
            if not port.output
        }

    def begin(self, inputs: Mapping[str, Array], *, graphs: bool) -> str:
        """Enqueue a run; return why no graph can be captured, or nothing."""
        lane = self._lane(inputs)
        staged = self.staging({name: each.shape for name, each in inputs.items()})
        for name, array in staged.items():
            if not _same(inputs[name], array):
                np.copyto(array, inputs[name], casting="same_kind")
        # The first run of a shape is never captured: the engine prepares itself in it.
        refused = self._capture(lane) if graphs and lane.graph is None and lane.runs > 0 else ""
        start, copied, computed, done = self._events
        self._stream.record(start)
        for name, array in staged.items():
            if name in self._device_side:
                self._stream.to_device(self._device_side[name], array)
        self._stream.record(copied)
        if lane.graph is not None:
            self._stream.replay(lane.graph)
        else:
            lane.execution.enqueue(self._stream.pointer)
        self._stream.record(computed)
        lane.runs += 1
        shapes = lane.execution.outputs()
        self._copy_out(shapes, late=False)
        self._stream.record(done)
        self._running = lane, shapes
        return refused

    def end(self, *, copy: bool) -> Ran:
        """Wait for the run, and return what it gave, as copies or as views of this stream's memory."""
        assert self._running is not None
        (lane, shapes), self._running = self._running, None
        start, copied, computed, done = self._events
        done.synchronize()
        if any(port.sized_late for port in self._program.ports):
            shapes = lane.execution.outputs()
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
            copy_in=copied.since(start),
            compute=computed.since(copied),
            copy_out=done.since(computed),
        )

    def _copy_out(self, shapes: Mapping[str, Shape], *, late: bool) -> None:
        for port in self._program.ports:
            if port.output and not port.on_host and port.sized_late is late:
                target = self._host_side[port.name].array(shapes[port.name], port.dtype)
                self._stream.to_host(target, self._device_side[port.name])

    def _lane(self, inputs: Mapping[str, Array]) -> _Lane:
        """The lane of these shapes; the values of inputs on the host decide shapes too."""
        on_host = {port.name for port in self._program.ports if port.on_host}
        key = tuple((name, each.shape, each.tobytes() if name in on_host else b"") for name, each in inputs.items())
        if key not in self._lanes:
            if len(self._lanes) == SHAPES_KEPT:
                self._lanes.popitem(last=False)[1].close()
            addresses = {name: buffer.address for name, buffer in self._host_side.items() if name in on_host}
            addresses |= {name: buffer.pointer for name, buffer in self._device_side.items()}
            shapes = {name: each.shape for name, each in inputs.items()}
            self._lanes[key] = _Lane(self._program.prepare(shapes, addresses, self._workspace.pointer))
        self._lanes.move_to_end(key)
        return self._lanes[key]

    def _capture(self, lane: _Lane) -> str:
        try:
            lane.graph = self._stream.capture(lambda: lane.execution.enqueue(self._stream.pointer))
        except CudaError as error:
            return str(error)
        return ""

    def _settle(self) -> None:
        with suppress(CudaError):  # it failed for the one who waits for the result, not for the one who closes
            self._stream.synchronize()

    def _drop_lanes(self) -> None:
        while self._lanes:
            self._lanes.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.close()


def _same(given: Array, staged: Array) -> bool:
    """Whether they are one array: the same memory, read alike."""
    return given.ctypes.data == staged.ctypes.data and given.dtype == staged.dtype and given.strides == staged.strides
