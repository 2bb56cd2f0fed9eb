"""Open what is to be timed, as fast as its backend runs it.

On the CPU that is not how trtopt measures drift: 16-bit types are not simulated, and Q/DQ pairs may be fused into
integer kernels. Such a time says nothing about a GPU, and `where` says so.

Touches: reads models; CUDA where it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trtopt.bench.inputs import Sizes
from trtopt.compare.metrics import Array
from trtopt.engine.binding import exhausted, first_line
from trtopt.engine.onnxruntime import CudaOptions, OrtRunner, open_runner
from trtopt.errors import EnvironmentUnableError, ModelError, OutOfMemoryError
from trtopt.requires import require


class Bound(Protocol):
    """A target with its inputs and outputs at fixed places: a run copies nothing."""

    @property
    def input_bytes(self) -> int:
        """Size of all inputs together."""
        ...

    @property
    def output_bytes(self) -> int:
        """Size of all outputs together."""
        ...

    def run(self) -> None:
        """Run once, and return when the outputs are there."""
        ...

    def copy_in(self, feed: Mapping[str, Array]) -> None:
        """Copy a feed from the host."""
        ...

    def copy_out(self) -> Mapping[str, Array]:
        """Copy the outputs to the host."""
        ...


class Session(Protocol):
    """A loaded target; `where` says what runs it, and where."""

    @property
    def where(self) -> str:
        """What runs, and where."""
        ...

    def bind(self, feed: Mapping[str, Array]) -> Bound:
        """Bind the target to the shapes of a feed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A loaded target: its name in tables, its file, its inputs, and whether host and device are apart."""

    name: str
    path: Path
    sizes: Sizes
    session: Session
    has_device: bool


def open_onnx(path: Path, device: str, cuda: CudaOptions) -> OrtRunner:
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
        return open_runner(path, device="cuda" if device == "auto" else device, cuda=cuda)
    except EnvironmentUnableError as error:
        if device != "auto" or isinstance(error, OutOfMemoryError):
            raise
        return _on_cpu(path)


def _on_cpu(path: Path) -> OrtRunner:
    ort = require("onnxruntime")
    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    # The threads of one target must not spin while another one has its turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
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
    return OrtRunner(session, f"onnxruntime {ort.__version__}, CPU; says nothing about the GPU")
