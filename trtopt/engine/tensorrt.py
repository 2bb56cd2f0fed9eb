"""Backend `tensorrt`: engines of TensorRT 8.5 to 11 and of TensorRT for RTX.

Touches: starts processes that parse and build (`trt.apart`), as TensorRT's parser can crash; the GPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.codec import encode
from trtopt.engine import BuildPlan, Order
from trtopt.engine.cuda.driver import has_gpu, read_driver
from trtopt.engine.trt import apart, options
from trtopt.engine.trt.locate import find, load
from trtopt.engine.trt.versions import PRODUCT, RTX
from trtopt.errors import EnvironmentUnableError
from trtopt.events import Emit
from trtopt.requires import install, versions
from trtopt.times import cache_name
from trtopt.types import Engine, OnnxModel, ShapeRange, Support, TypedModel

if TYPE_CHECKING:
    from trtopt.engine import Array
    from trtopt.engine.runner.engine import EngineRunner


def check_options(plan: BuildPlan) -> None:
    """Raise UsageError for an option that the TensorRT of this machine does not have; without one, `build` says so."""
    with contextlib.suppress(EnvironmentUnableError):
        options.check_options(find(plan.tensorrt), plan)


def lacks(plan: BuildPlan) -> Collection[str]:
    """Return the operators that this TensorRT's parser lacks; none without a TensorRT."""
    try:
        return find(plan.tensorrt).can.lacks
    except EnvironmentUnableError:
        return ()


def check(model: OnnxModel, plan: BuildPlan, *, emit: Emit) -> Support:
    """Return the nodes that TensorRT's parser rejects, and the error to raise about them.

    Raises:
        EnvironmentUnableError: TensorRT does not work here, or needs a GPU.
        BuildError: TensorRT crashed.
    """
    from trtopt.engine.trt.refusal import advised, error

    trt = find(plan.tensorrt)
    rejections = apart.check(trt, model.path, emit).rejections
    if not rejections:
        return Support(by=trt.name, rejections=())
    refused = advised(error(model.path, rejections), model.path)
    return Support(by=trt.name, rejections=rejections, what=refused.what, why=refused.why, fix=refused.fix)


def key(plan: BuildPlan) -> Mapping[str, Any]:
    """Return the TensorRT and the GPU. TensorRT builds for the GPU that it runs on, TensorRT for RTX for many.

    Raises:
        EnvironmentUnableError: TensorRT does not work here.
    """
    trt = find(plan.tensorrt)
    return {"tensorrt": f"{trt.name} {trt.version}", "gpus": None if trt.name == RTX else encode(read_driver())}


def timing_cache(plan: BuildPlan) -> str | None:
    """Return the name of a timing cache for this TensorRT and GPU; None for TensorRT for RTX, or without a GPU."""
    if not has_gpu() or find(plan.tensorrt).name == RTX:
        return None
    return cache_name(key(plan))


def build(order: Order, out: Path, *, emit: Emit) -> Engine:
    """Build an engine in a process of its own, and write it to the file `out`.

    Raises:
        TrtoptError: as `trt.builder.build`.
        BuildError: TensorRT crashed.
    """
    return apart.build(find(order.plan.tensorrt), order.typed, order.profile, order.plan, out, emit=emit)


def adopt(typed: TypedModel, profile: Sequence[ShapeRange], path: Path, *, emit: Emit) -> Engine:
    """Return the description of an engine that trtexec built from the graph of `typed`. Loading runs code from it.

    Raises:
        TrtoptError: as `trt.adopted.adopt`.
        EnvironmentUnableError: this machine has no GPU, or no TensorRT. TensorRT for RTX does not load such engines.
        BuildError: TensorRT crashed.
    """
    if not has_gpu():
        why, fix = "this machine has no NVIDIA GPU or driver", "Run this on the device that built it"
        raise EnvironmentUnableError(f"{path.name} cannot be loaded here", why=why, fix=fix)
    trt = load(PRODUCT)
    if isinstance(trt, str):
        why = f"{PRODUCT} {trt}"
        raise EnvironmentUnableError(f"{path.name} cannot be loaded here", why=why, fix=f"Install: {install(PRODUCT)}")
    request = apart.Adopt(tensorrt=trt.name, typed=typed, profile=tuple(profile), path=path.resolve())
    return apart.adopt(trt, request, emit)


def host() -> Mapping[str, Any] | None:
    """Return the driver with its GPUs, and the versions of the packages that run an engine; None without a GPU."""
    if not has_gpu():
        return None
    packages = ("tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13")
    return {"driver": encode(read_driver()), **versions(*packages, "cuda-python", "cuda-bindings", "pycuda")}


def open(engine: Engine, *, graphs: bool, streams: int = 1) -> EngineRunner:
    """Load an engine with the TensorRT that built it. At most `streams` runs can be in flight at the same time.

    Raises:
        TrtoptError: as `trt.builder.open_runner`.
    """
    from trtopt.engine.trt.builder import open_runner

    return open_runner(engine.path, engine.builder, streams=streams, graphs=graphs)


def layer_times(engine: Engine, feed: Mapping[str, Array], runs: int) -> Mapping[str, Sequence[float]]:
    """Run an engine, and return the times of its layers in milliseconds, by name: the mean if a name occurs twice.

    See `Compiler`.
    """
    from trtopt.engine.trt.builder import layer_times as measured

    count = Counter(layer.name for layer in engine.layers)
    found: dict[str, list[float]] = {}
    for number, layers in enumerate(measured(engine.path, engine.builder, feed, runs)):
        for name, ms in layers:
            series = found.setdefault(name, [0.0] * runs)
            series[number] += ms / max(count[name], 1)  # a name may occur twice
    return found
