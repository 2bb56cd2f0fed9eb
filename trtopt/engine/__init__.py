"""Backends, which turn typed ONNX graphs into engines, and engines into outputs. `--backend NAME` is that module.

Every backend module has:
    check_options  refuses options that it does not have, before anything is run
    build          returns the engine of a typed graph

A backend whose engine is a file of its own, not the typed graph itself, is a `Compiler`, and has in addition:
    lacks          operators that its parser lacks
    check          asks whether all operators are supported, before calibration
    key            everything on this machine that an engine depends on
    host           what an engine runs on here
    open           loads an engine
    layer_times    times the layers of an engine
    timing_cache   names the cache of kernel times that its builds share

The folders hold what they share: `trt/` for TensorRT, `runner/` to run engines on a GPU, `cuda/` below it, `ort/` for
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from trtopt import plugins
from trtopt.events import Emit
from trtopt.types import Engine, OnnxModel, ShapeRange, Support, TypedModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

DEFAULT = "tensorrt"
"""Backend without `--backend`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Options of the engine build. None, False and "" leave the default of the backend's library.

    `tensorrt` forces one of the TensorRT packages; sizes are in bytes; `optimization_level` is 0 to 5. A `timing_cache`
    that does not exist yet is created. `tactic_sources` adds libraries to the default ones or removes them, as trtexec
    writes it: `-CUDNN,+CUBLAS`.
    """

    backend: str = DEFAULT
    tensorrt: str | None = None
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    tactic_sources: str = ""

    def flags(self) -> tuple[str, ...]:
        """Return the flags of the options that are set, such as `--workspace`."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return tuple(f"--{name.removesuffix('_bytes').replace('_', '-')}" for name in names if name != "backend")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An engine to build.

    Attributes:
        typed: the typed graph and its decisions.
        profile: the range of shapes of each dynamic input.
        plan: the options.
        device: where onnxruntime runs: `cpu`, `cuda` or `auto`.
    """

    typed: TypedModel
    profile: tuple[ShapeRange, ...]
    plan: BuildPlan
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times of one run in milliseconds: to copy the inputs to the device, to compute, and to copy the outputs back."""

    copy_in: float
    compute: float
    copy_out: float


class Runner(Protocol):
    """A loaded engine."""

    @property
    def where(self) -> str:
        """Description of the runtime and the device, as reports show them."""
        ...

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Kind of device that it runs on."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        ...

    @property
    def max_batch(self) -> int:
        """Largest batch that it runs."""
        ...

    @property
    def weights(self) -> int:
        """Size of the weights on the device in bytes, or 0 if it is not known."""
        ...

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return every output by name."""
        ...

    def times(self, feed: Mapping[str, Array]) -> Times:
        """Run once and return the times of its parts."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Backend(Protocol):
    """The interface of a backend module whose engine is the typed graph itself."""

    def check_options(self, plan: BuildPlan) -> None:
        """Raise UsageError for an option that this backend does not have."""
        ...

    def build(self, order: Order, out: Path, *, emit: Emit) -> Engine:
        """Return the engine, written to the file `out` if it is a file of its own.

        Raises:
            EnvironmentUnableError: this machine cannot build it.
            BuildError: the network is not supported.
        """
        ...


class Compiler(Backend, Protocol):
    """The interface of a backend module that builds a file of its own."""

    def lacks(self, plan: BuildPlan) -> Collection[str]:
        """Return the operators that its parser lacks, and that preparation writes out (`graph.spelled`)."""
        ...

    def check(self, model: OnnxModel, plan: BuildPlan, *, emit: Emit) -> Support:
        """Return the nodes that are not supported.

        Raises:
            EnvironmentUnableError: this machine cannot tell.
        """
        ...

    def key(self, plan: BuildPlan) -> Mapping[str, Any]:
        """Return everything on this machine that an engine depends on: versions, and the GPU if it is made for one.

        Raises:
            EnvironmentUnableError: nothing on this machine can build it.
        """
        ...

    def timing_cache(self, plan: BuildPlan) -> str | None:
        """Return the name of a timing cache for what `key` returns; None where it has no effect."""
        ...

    def host(self) -> Mapping[str, Any] | None:
        """Return what an engine runs on here: the devices and versions. None if it cannot run here."""
        ...

    def open(self, engine: Engine, *, graphs: bool, streams: int = 1) -> Runner:
        """Load an engine. Loading runs code from it: its digest must have been checked.

        `graphs` enables CUDA graphs; `streams` is the number of runs that can be in flight at the same time.

        Raises:
            EnvironmentUnableError: the engine cannot run here.
            OutOfMemoryError: the device has too little memory.
        """
        ...

    def layer_times(self, engine: Engine, feed: Mapping[str, Array], runs: int) -> Mapping[str, Sequence[float]]:
        """Run an engine, and return the times of its layers in milliseconds, by the names in `engine.layers`.

        Raises:
            EnvironmentUnableError: the engine cannot run here.
            DataError: the feed does not fit the engine.
        """
        ...


def backends() -> tuple[str, ...]:
    """Return the names that `--backend` accepts."""
    return plugins.names(__name__)


def backend(name: str) -> Backend:
    """Return the backend module of that name.

    Raises:
        UsageError: the name is unknown; the message suggests the closest one.
    """
    return cast(Backend, plugins.load(__name__, name, "backend"))


def missing_operators(plan: BuildPlan) -> Collection[str]:
    """Return the operators that the parser of the plan's backend lacks; none if it has no parser."""
    compiling = compiler(plan.backend)
    return compiling.lacks(plan) if compiling else ()


def compiler(name: str) -> Compiler | None:
    """Return the backend module of that name, or None if its engine is the typed graph itself.

    Raises:
        UsageError: the name is unknown; the message suggests the closest one.
    """
    module = backend(name)
    return cast(Compiler, module) if hasattr(module, "open") else None
