"""Run an engine on the GPU as fast as it goes: buffers made once, copies beside computing, CUDA graphs.

    run(feed)                  one sample or batch in, outputs out
    submit(feed); collect()    as many in flight as there are streams, first in, first out
    stage(shapes)              the page-locked arrays of the next run, to be filled in place and submitted

Each stream has its own buffers, made for the largest shapes. On it, inputs are copied from page-locked memory, the
engine computes, outputs are copied back; while one stream copies, another computes. What the engine enqueues is
captured as a CUDA graph when a shape comes a second time, and replayed from then on.

The engine itself is behind the protocols of `runner_program`: `runner_tensorrt` has TensorRT's.

Touches: the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from trtopt.engine.cuda import Array, Device
from trtopt.engine.runner_program import Port, Program, Shape
from trtopt.engine.runner_slot import Ran, Slot
from trtopt.errors import DataError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self


class EngineRunner:
    """Runs a program on a device; it owns both, and closes them. The `run` and `where` of every runner.

    `streams` runs may be in flight at once. `no_graphs` says why there are no CUDA graphs; it is empty while there are.
    """

    def __init__(self, device: Device, program: Program, *, streams: int = 2, graphs: bool = True) -> None:
        self._inputs = tuple(port for port in program.ports if not port.output)
        self.inputs = tuple(port.name for port in self._inputs)
        self.outputs = tuple(port.name for port in program.ports if port.output)
        self.where = f"{program.where}, {device.info.name}"
        self.no_graphs = "" if graphs else "they were not asked for"
        if graphs and not device.backend.GRAPHS:
            self.no_graphs = f"{device.info.package} has none"
        elif any(port.sized_late for port in program.ports):
            self.no_graphs = "the shape of an output depends on values"
        self._program = program
        with ExitStack() as held:  # what was made is released also when there is no memory for the rest
            held.callback(device.close)
            held.callback(program.close)
            if streams < 1:
                raise UsageError(f"an engine cannot run on {streams} streams", fix="Give 1 or more")
            self._idle = deque(held.enter_context(Slot(device, program)) for _ in range(streams))
            self._held = held.pop_all()
        self._busy: deque[Slot] = deque()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output for one feed.

        Raises:
            RuntimeError: runs are in flight: `collect` them first.
            DataError: an input is missing, or does not fit the engine's type or shapes.
            CudaError: the GPU failed.
        """
        if self._busy:
            raise RuntimeError("runs are in flight: collect their results first")
        self.submit(feed)
        return self.collect().outputs

    def submit(self, feed: Mapping[str, Array]) -> None:
        """Begin a run and return at once. The feed may be changed afterwards, unless it is what `stage` gave.

        Raises:
            RuntimeError: as many runs are in flight as there are streams: `collect` first.
            DataError: an input is missing, or does not fit the engine's type or shapes.
        """
        slot = self._next()
        inputs = {port.name: _fitting(port, feed) for port in self._inputs}
        if reason := slot.begin(inputs, graphs=not self.no_graphs):
            self.no_graphs = reason
        self._busy.append(self._idle.popleft())

    def stage(self, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """The arrays that the next run is copied to the GPU from, by input: fill them, and `submit` them.

        A feed of other arrays is copied into these first, which for pictures takes longer than the copy to the GPU.

        Raises:
            RuntimeError: as many runs are in flight as there are streams: `collect` first.
            DataError: a shape is missing, or does not fit the engine.
        """
        return self._next().staging({port.name: _shape(port, shapes) for port in self._inputs})

    def collect(self, *, copy: bool = True) -> Ran:
        """Wait for the oldest run in flight, and return what it gave.

        Without `copy` its outputs are views of memory that a later `submit` overwrites.

        Raises:
            RuntimeError: none is in flight.
            CudaError: the GPU failed.
        """
        if not self._busy:
            raise RuntimeError("no run is in flight: submit one first")
        slot = self._busy.popleft()
        self._idle.append(slot)
        return slot.end(copy=copy)

    def _next(self) -> Slot:
        if not self._idle:
            raise RuntimeError("every stream is busy: collect a result first")
        return self._idle[0]

    @property
    def in_flight(self) -> int:
        """Runs that were submitted and not collected."""
        return len(self._busy)

    @property
    def memory(self) -> dict[str, int]:
        """Device memory in bytes: `weights`, and of all streams together `activations` and `io`."""
        slots = len(self._idle) + len(self._busy)
        ports = sum(port.size for port in self._program.ports if not port.on_host)
        return {
            "weights": self._program.weights_size,
            "activations": slots * self._program.workspace_size,
            "io": slots * ports,
        }

    def close(self) -> None:
        """Wait for what is in flight, and release everything. A second time does nothing."""
        self._busy.clear()
        self._idle.clear()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _fitting(port: Port, feed: Mapping[str, Array]) -> Array:
    if port.name not in feed:
        raise DataError(f"no data for input {port.name}", why=f"the sample has {', '.join(feed) or 'none'}")
    array = np.asarray(feed[port.name])
    if not np.can_cast(array.dtype, port.dtype, casting="same_kind"):
        raise DataError(
            f"input {port.name} does not fit the engine", why=f"it is {array.dtype}, the engine reads {port.dtype}"
        )
    _shape(port, {port.name: array.shape})
    return array


def _shape(port: Port, shapes: Mapping[str, Shape]) -> Shape:
    if port.name not in shapes:
        raise DataError(f"no shape for input {port.name}", why=f"given are {', '.join(shapes) or 'none'}")
    shape = shapes[port.name]
    within = len(shape) == len(port.max) and all(
        low <= size <= high for low, size, high in zip(port.min, shape, port.max, strict=True)
    )
    if not within:
        takes = f"{list(port.min)} to {list(port.max)}" if port.min != port.max else f"{list(port.max)}"
        raise DataError(
            f"input {port.name} does not fit the engine",
            why=f"its shape is {list(shape)}, the engine takes {takes}",
            fix="Build with --shape for other sizes",
        )
    return shape
