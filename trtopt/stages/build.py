"""The stage `build`: typed ONNX to an audited engine.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trtopt.codec import encode
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
    from trtopt.engine import tensorrt

    trt = tensorrt.find(plan.tensorrt)
    options = tensorrt.BuildOptions(
        workspace_bytes=plan.workspace_bytes,
        optimization_level=plan.optimization_level,
        version_compatible=plan.version_compatible,
        hardware_compatible=plan.hardware_compatible,
        timing_cache=plan.timing_cache,
    )

    names = {spec.name for spec in typed.onnx.inputs}
    profile = tuple(entry for entry in ranges if entry.name in names)

    def make(folder: Path) -> Engine:
        return tensorrt.build(trt, typed, profile, options, folder / "model.engine", emit=context.emit)

    key = {
        "typed": typed.onnx.digest,
        "profile": [asdict(entry) for entry in profile],
        "options": encode(options),
        "tensorrt": f"{trt.name} {trt.version}",
    }
    return context.store.stage("build", key, Engine, make, engine_line)


def engine_line(engine: Engine) -> str:
    """Return the summary line of an engine: file, size and builder."""
    return f"{engine.path.name}, {engine.size_bytes / 1e6:.2f} MB, {engine.builder}"
