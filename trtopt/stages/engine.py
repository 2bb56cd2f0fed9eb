"""The stages that make the engine and judge it: build, compare.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trtopt.codec import encode
from trtopt.config import BuildPlan
from trtopt.data.dataset import Dataset
from trtopt.stages.context import Context, versions
from trtopt.types import Comparison, Engine, OnnxModel, ShapeRange, TypedModel

ENGINE_NOT_RUN = " (the typed graph of the engine: TensorRT itself was not run)"


def build(context: Context, typed: TypedModel, ranges: Sequence[ShapeRange], plan: BuildPlan) -> Engine:
    """Typed ONNX -> engine (`model.engine`), audited; for the backend `onnxruntime` the typed ONNX is the engine.

    Raises:
        EnvironmentUnableError: there is no TensorRT here.
        BuildError: TensorRT refuses the network, or builds it in another precision.
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

    def make(folder: Path) -> Engine:
        return tensorrt.build(trt, typed, tuple(ranges), options, folder / "model.engine", emit=context.emit)

    key = {
        "typed": typed.onnx.digest,
        "profile": [asdict(entry) for entry in ranges],
        "options": encode(options),
        "tensorrt": f"{trt.name} {trt.version}",
    }
    return context.store.stage("build", key, Engine, make, engine_line)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to compare on: samples, gates as the user wrote them, a remark on where the candidate ran (empty: none), and
    the fingerprints of the samples that it was calibrated on.
    """

    dataset: Dataset
    gates: str
    ran: str = ""
    calibrated_on: tuple[str, ...] = ()


def compare(context: Context, baseline: OnnxModel, candidate: OnnxModel, evaluation: Evaluation) -> Comparison:
    """Baseline, candidate and samples -> drift and verdict."""

    def make(_: Path) -> Comparison:
        from trtopt.compare.run import Pair, compare
        from trtopt.data.overlap import fingerprinted
        from trtopt.engine.onnxruntime import open_runner

        pair = Pair(
            baseline=open_runner(baseline.path, device=context.device),
            candidate=open_runner(candidate.path, device=context.device),
            names=(baseline.path.name, candidate.path.name),
        )
        seen: set[str] = set()
        dataset = fingerprinted(evaluation.dataset, seen)
        made = compare(pair, dataset, evaluation.gates, emit=context.emit)
        shared = len(seen & set(evaluation.calibrated_on))
        note = (f"{shared} of {made.samples} evaluation samples were calibrated on: no evidence for unseen data",)
        return replace(
            made,
            candidate_ran=made.candidate_ran + evaluation.ran,
            warnings=made.warnings + (note if shared else ()),
        )

    key = {
        "baseline": baseline.digest,
        "candidate": candidate.digest,
        "data": evaluation.dataset.digest,
        "gates": evaluation.gates,
        "calibrated_on": hashlib.sha256("".join(evaluation.calibrated_on).encode()).hexdigest(),
        "ran": evaluation.ran,
        "device": context.device,
        **versions("onnxruntime", "onnxruntime-gpu"),
    }
    return context.store.stage("compare", key, Comparison, make, lambda made: f"{made.samples} samples: {made.verdict}")


def engine_line(engine: Engine) -> str:
    """One line about an engine: file, size, builder."""
    return f"{engine.path.name}, {engine.size_bytes / 1e6:.2f} MB, {engine.builder}"
