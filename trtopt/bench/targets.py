"""Open what is to be timed, as fast as its backend runs it, and run it with and without copies.

On the CPU that is not how trtopt measures drift: 16-bit types are not simulated, and Q/DQ pairs may be fused into
integer kernels. Such a time says nothing about a GPU, and `where` says so.

Touches: reads models; CUDA where it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trtopt.bench.inputs import Sizes
from trtopt.bench.latency import Run
from trtopt.data.dataset import Feed
from trtopt.engine.binding import exhausted, first_line
from trtopt.engine.onnxruntime import CudaOptions, OrtRunner, open_runner
from trtopt.errors import EnvironmentUnableError, ModelError, OutOfMemoryError
from trtopt.requires import require

if TYPE_CHECKING:
    from trtopt.engine.runner import EngineRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How a target runs on one feed: over buffers where it computes, and (None: they are on the host) with the copies
    to and from there. `bytes` is the size of its inputs and outputs.
    """

    plain: Run
    with_copies: Run | None
    bytes: int


class Session(Protocol):
    """A loaded target; `where` says what runs it, and where."""

    @property
    def where(self) -> str:
        """What runs, and where."""
        ...

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The kind of device that it runs on."""
        ...

    @property
    def weights(self) -> int:
        """Bytes that its weights take on the device, where the backend tells; else 0."""
        ...

    def ways(self, feed: Feed) -> Ways:
        """Make ready for feeds of this shape."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A loaded target: its name in tables, its inputs, and how it runs."""

    name: str
    sizes: Sizes
    session: Session


class OnnxSession:
    """An ONNX graph in onnxruntime, timed on the host's clock."""

    weights = 0

    def __init__(self, runner: OrtRunner, where: str) -> None:
        self.where = where
        self.device: Literal["cpu", "cuda"] = "cuda" if runner.place.kind == "cuda" else "cpu"
        self._runner: OrtRunner | None = runner

    def ways(self, feed: Feed) -> Ways:
        """Bind the graph to buffers; a run returns when the outputs are there.

        Raises:
            DataError: onnxruntime refuses the feed, or fails on it.
            OutOfMemoryError: the memory is exhausted.
        """
        assert self._runner is not None
        bound = self._runner.bind(feed)

        def with_copies() -> None:
            bound.copy_in(feed)
            bound.run()
            bound.copy_out()

        return Ways(
            plain=lambda: timed(bound.run),
            with_copies=(lambda: timed(with_copies)) if self.device == "cuda" else None,
            bytes=bound.input_bytes + bound.output_bytes,
        )

    def close(self) -> None:
        """Let the session go; what `ways` returned keeps it until it goes, too."""
        self._runner = None


class EngineSession:
    """A TensorRT engine, one run at a time: computing by the GPU's own events, with the copies on the host's clock."""

    device: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, runner: EngineRunner) -> None:
        self.where = runner.where
        self._runner = runner

    @property
    def weights(self) -> int:
        """Bytes that loading the engine took on the GPU."""
        return self._runner.memory["weights"]

    def ways(self, feed: Feed) -> Ways:
        """Run once, which says what the outputs are; a run returns when they are there.

        Raises:
            DataError: the feed does not fit the engine.
            CudaError: the GPU failed.
        """
        runner = self._runner
        outputs = runner.run(feed)

        def compute() -> float:
            runner.submit(feed)
            return runner.collect().compute

        return Ways(
            plain=compute,
            with_copies=lambda: timed(lambda: runner.run(feed)),
            bytes=sum(feed[name].nbytes for name in runner.inputs) + sum(each.nbytes for each in outputs.values()),
        )

    def close(self) -> None:
        """Release the engine and its buffers."""
        self._runner.close()


def timed(run: Callable[[], object]) -> float:
    """How long a call takes on the host's clock, in milliseconds."""
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def open_engine(path: Path, builder: str) -> EngineSession:
    """Load an engine that a manifest vouches for, with the TensorRT that built it.

    Raises:
        EnvironmentUnableError: there is no such TensorRT, no GPU, or the engine does not run on it.
        OutOfMemoryError: the GPU has no memory for its largest shapes.
        MissingDependencyError: neither cuda-python nor pycuda is installed.
    """
    from trtopt.engine import locate, runner_tensorrt

    found = locate.find(locate.RTX if builder.startswith("TensorRT-RTX") else "tensorrt")
    return EngineSession(runner_tensorrt.open_engine(found, path, streams=1))


def open_onnx(path: Path, device: str, cuda: CudaOptions) -> OnnxSession:
    """Open an ONNX file in onnxruntime, on `cuda`, `cpu`, or `auto` (CUDA where it works, else the CPU).

    Raises:
        ModelError: onnxruntime cannot load it.
        EnvironmentUnableError: CUDA was asked for and is not there.
        OutOfMemoryError: the memory does not hold it.
        MissingDependencyError: onnxruntime is not installed.
    """
    if device == "cpu":
        return _on_cpu(path)
    try:
        runner = open_runner(path, device="cuda" if device == "auto" else device, cuda=cuda)
    except EnvironmentUnableError as error:
        if device != "auto" or isinstance(error, OutOfMemoryError):
            raise
        return _on_cpu(path)
    return OnnxSession(runner, runner.where)


def _on_cpu(path: Path) -> OnnxSession:
    ort = require("onnxruntime")
    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    # The threads of one target must not spin while another one has its turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    where = f"onnxruntime {ort.__version__}, CPU; says nothing about the GPU"
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if exhausted(error):
            raise OutOfMemoryError(f"memory does not hold {path.name}", why=first_line(error)) from error
        raise ModelError(
            f"onnxruntime cannot run {path.name} on the CPU",
            why=first_line(error),
            fix="A type that the CPU has no kernels for (bfloat16, float8) is timed on a GPU: --device cuda",
        ) from error
    return OnnxSession(OrtRunner(session, where), where)
