"""The stage `build`: typed ONNX to an audited engine.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trtopt.codec import encode
from trtopt.events import Emit
from trtopt.plan import BuildPlan
from trtopt.stages.context import Context
from trtopt.types import Engine, ShapeRange, TypedModel


def build(context: Context, typed: TypedModel, ranges: Sequence[ShapeRange], plan: BuildPlan) -> Engine:
    """Build the engine (`model.engine`) and audit its precision. With `onnxruntime` the typed ONNX is the engine.

    Args:
        context: the context of the stage.
        typed: the typed ONNX graph.
        ranges: the shape ranges of dynamic inputs. Those of inputs that the graph does not have any more are ignored.
        plan: the build options.

    Raises:
        EnvironmentUnableError: TensorRT is not available on this machine.
        BuildError: TensorRT does not support the network, or builds it in another precision.
    """
    if plan.backend == "onnxruntime":
        return Engine(
            path=typed.onnx.path,
            digest=typed.onnx.digest,
            backend="onnxruntime",
            builder="the typed ONNX graph itself",
            device=context.device,
            size_bytes=typed.onnx.path.stat().st_size,
            audit=typed.counts(),
            audited="typed graph",
        )
    from trtopt.engine.driver import read_driver
    from trtopt.engine.trt.locate import find
    from trtopt.engine.trt.versions import RTX

    trt = find(plan.tensorrt)

    def make(folder: Path) -> Engine:
        return build_engine(folder, typed, ranges, plan, context.emit)

    key = {
        "typed": typed.onnx.digest,
        "profile": [asdict(entry) for entry in fitting(typed, ranges)],
        "options": encode(plan),
        "tensorrt": f"{trt.name} {trt.version}",
        # An engine of TensorRT is made for the GPU that it is built on. TensorRT for RTX builds for many.
        "gpus": None if trt.name == RTX else encode(read_driver()),
    }
    return context.store.stage("build", key, Engine, make, engine_line)


def build_engine(folder: Path, typed: TypedModel, ranges: Sequence[ShapeRange], plan: BuildPlan, emit: Emit) -> Engine:
    """Build `model.engine` in `folder` with TensorRT, in a process of its own."""
    from trtopt.engine.trt import apart
    from trtopt.engine.trt.locate import find
    from trtopt.engine.trt.options import BuildOptions

    options = BuildOptions(
        workspace_bytes=plan.workspace_bytes,
        optimization_level=plan.optimization_level,
        version_compatible=plan.version_compatible,
        hardware_compatible=plan.hardware_compatible,
        timing_cache=plan.timing_cache,
        tactic_sources=plan.tactic_sources,
    )
    profile = fitting(typed, ranges)
    return apart.build(find(plan.tensorrt), typed, profile, options, folder / "model.engine", emit=emit)


def fitting(typed: TypedModel, ranges: Sequence[ShapeRange]) -> tuple[ShapeRange, ...]:
    """Return the ranges of the inputs that the typed graph still has: preparation drops those that nothing reads."""
    names = {spec.name for spec in typed.onnx.inputs}
    return tuple(entry for entry in ranges if entry.name in names)


def engine_line(engine: Engine) -> str:
    """Return the summary line of an engine: file, size and builder."""
    return f"{engine.path.name}, {engine.size_bytes / 1e6:.2f} MB, {engine.builder}"
