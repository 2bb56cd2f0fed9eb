"""Targets of a benchmark: models and engines, loaded as their backend runs them fastest, with and without copies.

On the CPU this differs from how trtopt measures drift: 16-bit types are not simulated, and Q/DQ pairs may be fused into
integer kernels. Such a time says nothing about the GPU, which `where` points out.

Touches: reads models; CUDA if requested.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from trtopt.bench.inputs import Sizes
from trtopt.bench.latency import Run
from trtopt.data.dataset import Feed
from trtopt.engine import Runner, Times, compiler
from trtopt.engine.onnxruntime import CudaOptions, OrtRunner, open_runner
from trtopt.engine.runner.binding import exhausted, first_line
from trtopt.errors import EnvironmentUnableError, ModelError, OutOfMemoryError
from trtopt.requires import require
from trtopt.types import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Ways to run a target on one feed.

    `plain` runs on buffers in the memory of its device, `with_copies` includes the copies from and to the host (None
    if the device is the host). `parts` runs with copies, and returns the times of the parts. `bytes` is the size of all
    inputs and outputs.
    """

    plain: Run
    with_copies: Run | None
    parts: Callable[[], Times]
    bytes: int


class Session(Protocol):
    """Model or engine that is loaded. `load` is the time that loading took, in seconds."""

    load: float

    @property
    def where(self) -> str:
        """Backend and device, as reports show them."""
        ...

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Kind of device that the target runs on."""
        ...

    @property
    def weights(self) -> int:
        """Size of the weights on the device in bytes, or 0 if the backend does not report it."""
        ...

    def ways(self, feed: Feed) -> Ways:
        """Prepare for inputs of the shapes in `feed`, and return the ways to run on them."""
        ...

    def close(self) -> None:
        """Release the memory of the target."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Loaded target with its name in tables and its inputs."""

    name: str
    sizes: Sizes
    session: Session


class OnnxSession:
    """ONNX graph in onnxruntime, timed by the host's clock."""

    weights = 0

    def __init__(self, runner: OrtRunner, where: str, load: float) -> None:
        self.where, self.load = where, load
        self.device: Literal["cpu", "cuda"] = "cuda" if runner.place.kind == "cuda" else "cpu"
        self._runner: OrtRunner | None = runner

    def ways(self, feed: Feed) -> Ways:
        """Bind the graph to buffers of the feed's shapes. A run returns after the outputs are complete.

        Raises:
            DataError: onnxruntime rejects the feed, or fails on it.
            OutOfMemoryError: the memory is exhausted.
        """
        assert self._runner is not None
        bound = self._runner.bind(feed)

        def parts() -> Times:
            return Times(
                copy_in=timed(lambda: bound.copy_in(feed)), compute=timed(bound.run), copy_out=timed(bound.copy_out)
            )

        return Ways(
            plain=lambda: timed(bound.run),
            with_copies=(lambda: timed(parts)) if self.device == "cuda" else None,
            parts=parts,
            bytes=bound.input_bytes + bound.output_bytes,
        )

    def close(self) -> None:
        """Drop the session. It is released once the functions returned by `ways` are dropped, too."""
        self._runner = None


class EngineSession:
    """Engine, one run at a time. Its backend times the computation alone, the host's clock a run with copies."""

    def __init__(self, runner: Runner, load: float) -> None:
        self.where, self.load = runner.where, load
        self.device = runner.device
        self._runner = runner

    @property
    def weights(self) -> int:
        """Memory that loading the engine took on its device, in bytes."""
        return self._runner.weights

    def ways(self, feed: Feed) -> Ways:
        """Run once to learn the sizes of the outputs, and return the ways to run.

        Raises:
            DataError: the feed does not fit the engine.
            CudaError: the GPU failed.
        """
        runner = self._runner
        outputs = runner.run(feed)
        input_bytes = sum(feed[name].nbytes for name in runner.inputs)
        output_bytes = sum(array.nbytes for array in outputs.values())
        return Ways(
            plain=lambda: runner.times(feed).compute,
            with_copies=(lambda: timed(lambda: runner.run(feed))) if self.device == "cuda" else None,
            parts=lambda: runner.times(feed),
            bytes=input_bytes + output_bytes,
        )

    def close(self) -> None:
        """Release the engine and its buffers."""
        self._runner.close()


def timed(run: Callable[[], object]) -> float:
    """Call `run`, and return its duration by the host's clock in milliseconds."""
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def open_engine(engine: Engine) -> EngineSession:
    """Load an engine that is listed in a manifest. Loading runs code from it: its digest must have been checked.

    Raises:
        EnvironmentUnableError: its backend or a device is missing, or the engine does not run on the device.
        OutOfMemoryError: the device has too little memory for the engine's largest shapes.
        MissingDependencyError: a package that the backend runs it with is not installed.
    """
    compiling = compiler(engine.backend)
    assert compiling is not None, f"the engine of {engine.backend} is a graph"
    start = time.perf_counter()
    runner = compiling.open(engine, graphs=True)
    return EngineSession(runner, time.perf_counter() - start)


def open_onnx(path: Path, device: str, cuda: CudaOptions) -> OnnxSession:
    """Load an ONNX file in onnxruntime.

    Args:
        path: the ONNX file.
        device: `cuda`, `cpu`, or `auto` (CUDA if it works, else the CPU).
        cuda: options of the CUDA provider.

    Raises:
        ModelError: onnxruntime cannot load the file.
        EnvironmentUnableError: `device` is `cuda` and CUDA does not work.
        OutOfMemoryError: the memory is exhausted while loading.
        MissingDependencyError: onnxruntime is not installed.
    """
    if device == "cpu":
        return _on_cpu(path)
    start = time.perf_counter()
    try:
        runner = open_runner(path, device="cuda" if device == "auto" else device, cuda=cuda)
    except EnvironmentUnableError as error:
        # Exhausted GPU memory is an answer about the model, not a reason to time it on the CPU.
        if device != "auto" or isinstance(error, OutOfMemoryError):
            raise
        return _on_cpu(path)
    return OnnxSession(runner, runner.where, time.perf_counter() - start)


def _on_cpu(path: Path) -> OnnxSession:
    ort = require("onnxruntime")
    options: Any = ort.SessionOptions()
    options.log_severity_level = 4  # fatal errors only: failures are raised as exceptions anyway
    # onnxruntime's threads spin after a run, which would slow down the target that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    where = f"onnxruntime {ort.__version__}, CPU; says nothing about the GPU"
    start = time.perf_counter()
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if exhausted(error):
            raise OutOfMemoryError(f"out of memory while loading {path.name}", why=first_line(error)) from error
        raise ModelError(
            f"onnxruntime cannot run {path.name} on the CPU",
            why=first_line(error),
            fix="Types without CPU kernels (bfloat16, float8) can be timed on a GPU: --device cuda",
        ) from error
    return OnnxSession(OrtRunner(session, where), where, time.perf_counter() - start)
