"""Runner for engines on a GPU, with reused buffers, copies that overlap with computation, and CUDA graphs.

    run(feed)                  run on one feed and return its outputs
    submit(feed); collect()    start a run, fetch the oldest result; up to one run in flight per stream
    stage(shapes)              page-locked arrays of the next run, to fill in place and submit

Each stream has buffers of its own, allocated for the largest shapes. A run copies the inputs from page-locked memory,
computes, and copies the outputs back; while one stream copies, another one computes. The work of the engine is captured
as a CUDA graph when a shape occurs for the second time, and replayed from then on.

The protocols of `program` describe an engine; `tensorrt` implements them.

Touches: the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np

from trtopt.counts import network_runs
from trtopt.engine import Times
from trtopt.engine.cuda.device import Array, Device
from trtopt.engine.runner.program import Port, Program, Shape
from trtopt.engine.runner.slot import Ran, Slot
from trtopt.errors import DataError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self


class EngineRunner:
    """Runner for an engine on a device. It owns both, and closes them.

    `inputs` and `outputs` are the names of the tensors; `where` names the engine's runtime and the GPU, as reports show
    them. `no_graphs` gives the reason why CUDA graphs are not used; it is empty while they are. At most `streams` runs
    can be in flight at the same time, and only one with TensorRT 8.
    """

    device: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, device: Device, program: Program, *, streams: int = 2, graphs: bool = True) -> None:
        self._inputs = tuple(port for port in program.ports if not port.output)
        self.inputs = tuple(port.name for port in self._inputs)
        self.outputs = tuple(port.name for port in program.ports if port.output)
        self.where = f"{program.where}, {device.info.name}"
        self.no_graphs = "" if graphs else "CUDA graphs are disabled"
        if graphs and not device.backend.GRAPHS:
            self.no_graphs = f"{device.info.package} does not support CUDA graphs"
        elif any(port.sized_late for port in program.ports):
            # A graph has fixed sizes, and the size of such an output is known only during the run.
            self.no_graphs = "the shape of an output depends on values"
        self._program = program
        # The stack releases everything again if there is too little memory for one of the streams.
        with ExitStack() as resources:
            resources.callback(device.close)
            resources.callback(program.close)
            if streams < 1:
                raise UsageError(f"an engine cannot run on {streams} streams", fix="Use 1 or more")
            # Every stream needs an execution context of its own.
            streams = min(streams, program.max_contexts or streams)
            self._idle = deque(resources.enter_context(Slot(device, program)) for _ in range(streams))
            self._resources = resources.pop_all()
        self._busy: deque[Slot] = deque()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return every output by name.

        Raises:
            RuntimeError: runs are in flight; `collect` them first.
            DataError: an input is missing, or its dtype or shape does not fit the engine.
            CudaError: the GPU failed.
        """
        if self._busy:
            raise RuntimeError("runs are in flight: collect their results first")
        self.submit(feed)
        return self.collect().outputs

    def times(self, feed: Mapping[str, Array]) -> Times:
        """Run once, and return the times between GPU events around the copies and the computation.

        Raises:
            as `submit` and `collect`.
        """
        self.submit(feed)
        return self.collect(copy=False).times

    def submit(self, feed: Mapping[str, Array]) -> None:
        """Start a run and return immediately.

        The feed may be changed afterwards, except for arrays from `stage`, which the GPU reads during the run.

        Raises:
            RuntimeError: every stream has a run in flight; `collect` one first.
            DataError: an input is missing, or its dtype or shape does not fit the engine.
        """
        slot = self._next()
        network_runs.add()
        inputs = {port.name: _fitting(port, feed) for port in self._inputs}
        # An engine that cannot be captured once is not tried again.
        if reason := slot.begin(inputs, graphs=not self.no_graphs):
            self.no_graphs = reason
        self._busy.append(self._idle.popleft())

    def stage(self, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """Return the page-locked arrays from which the next run copies its inputs to the GPU, to fill and `submit`.

        A feed of other arrays is first copied into these. For images that takes longer than the copy to the GPU.

        Args:
            shapes: shape of each input.

        Raises:
            RuntimeError: every stream has a run in flight; `collect` one first.
            DataError: a shape is missing, or does not fit the engine.
        """
        return self._next().staging({port.name: _shape(port, shapes) for port in self._inputs})

    def collect(self, *, copy: bool = True) -> Ran:
        """Wait for the oldest run in flight, and return its outputs and times.

        Args:
            copy: whether to copy the outputs. Otherwise they are views of memory that a later `submit` overwrites.

        Raises:
            RuntimeError: no run is in flight.
            CudaError: the GPU failed.
        """
        if not self._busy:
            raise RuntimeError("no run is in flight: submit one first")
        slot = self._busy.popleft()
        self._idle.append(slot)
        return slot.end(copy=copy)

    def _next(self) -> Slot:
        """Return the idle stream that the next run will use."""
        if not self._idle:
            raise RuntimeError("every stream is busy: collect a result first")
        return self._idle[0]

    @property
    def max_batch(self) -> int:
        """The largest size of the first axis that all inputs accept; 1 if it is not the same for all of them."""
        sizes = {port.max[0] for port in self._inputs if port.max}
        return sizes.pop() if len(sizes) == 1 else 1

    @property
    def min_batch(self) -> int:
        """The smallest size of the first axis that all inputs accept; 1 if it is not the same for all of them."""
        sizes = {port.min[0] for port in self._inputs if port.min}
        return sizes.pop() if len(sizes) == 1 else 1

    @property
    def weights(self) -> int:
        """GPU memory that loading the engine took, in bytes."""
        return self.memory["weights"]

    @property
    def in_flight(self) -> int:
        """Number of runs that were submitted but not collected."""
        return len(self._busy)

    @property
    def memory(self) -> dict[str, int]:
        """Device memory in bytes: `weights`, and `activations` and `io` (inputs and outputs) of all streams."""
        streams = len(self._idle) + len(self._busy)
        io_size = sum(port.size for port in self._program.ports if not port.on_host)
        return {
            "weights": self._program.weights_size,
            "activations": streams * self._program.workspace_size,
            "io": streams * io_size,
        }

    def close(self) -> None:
        """Wait for the runs in flight, and release everything. Further calls do nothing."""
        self._busy.clear()
        self._idle.clear()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _fitting(port: Port, feed: Mapping[str, Array]) -> Array:
    """Return the array for an input after checking its dtype and shape."""
    if port.name not in feed:
        raise DataError(f"no data for input {port.name}", why=f"the sample has {', '.join(feed) or 'none'}")
    array = np.asarray(feed[port.name])
    # "same_kind" allows a smaller type, such as float32 data for an FP16 input, but not floats for integers.
    if not np.can_cast(array.dtype, port.dtype, casting="same_kind"):
        raise DataError(
            f"input {port.name} does not fit the engine", why=f"it is {array.dtype}, the engine expects {port.dtype}"
        )
    _shape(port, {port.name: array.shape})
    return array


def _shape(port: Port, shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape of an input after checking that the engine's profile contains it."""
    if port.name not in shapes:
        names = f"shapes were given for {', '.join(shapes)}" if shapes else "no shapes were given"
        raise DataError(f"no shape for input {port.name}", why=names)
    shape = shapes[port.name]
    within = len(shape) == len(port.max) and all(
        low <= size <= high for low, size, high in zip(port.min, shape, port.max, strict=True)
    )
    if not within:
        supported = f"{list(port.min)} to {list(port.max)}" if port.min != port.max else f"{list(port.max)}"
        raise DataError(
            f"input {port.name} does not fit the engine",
            why=f"its shape is {list(shape)}, the engine supports {supported}",
            fix="Build with --shape for other sizes",
        )
    return shape
