"""The stages that make the engine and judge it: build, compare, gate.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trtopt.codec import encode
from trtopt.config import BuildPlan, MeasurePlan, output_kinds
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What to compare on: samples, how outputs are read and measured, a remark on where the candidate ran (or nothing),
    and the fingerprints of the samples that it was calibrated on.
    """

    dataset: Dataset
    measure: MeasurePlan
    ran: str = ""
    calibrated_on: tuple[str, ...] = ()


def compare(
    context: Context, baseline: OnnxModel, candidate: OnnxModel, evaluation: Evaluation, name: str = "compare"
) -> Comparison:
    """Baseline, candidate and samples -> drift, not judged yet; `name` is the stage's, where there are several."""

    def make(_: Path) -> Comparison:
        from trtopt.compare.repeats import check_repeats
        from trtopt.compare.run import Measure, Pair, compare
        from trtopt.data.overlap import fingerprinted
        from trtopt.engine.onnxruntime import open_runner

        pair = Pair(
            baseline=open_runner(baseline.path, device=context.device),
            candidate=open_runner(candidate.path, device=context.device),
            names=(baseline.path.name, candidate.path.name),
        )
        check_repeats(pair.baseline, evaluation.dataset, baseline.path)
        measure = Measure(kinds=output_kinds(evaluation.measure.kinds), metrics=evaluation.measure.metrics)
        seen: dict[int, str] = {}
        made = compare(pair, fingerprinted(evaluation.dataset, seen), measure, emit=context.emit)
        known = frozenset(evaluation.calibrated_on)
        return replace(
            made,
            candidate_ran=made.candidate_ran + evaluation.ran,
            calibrated_on=sum(fingerprint in known for fingerprint in seen.values()),
        )

    from trtopt.compare.own import digest

    key = {
        "baseline": baseline.digest,
        "candidate": candidate.digest,
        "metrics": [digest(metric) for metric in evaluation.measure.metrics],
        "data": evaluation.dataset.digest,
        "measure": encode(evaluation.measure),
        "calibrated_on": hashlib.sha256("".join(evaluation.calibrated_on).encode()).hexdigest(),
        "ran": evaluation.ran,
        "device": context.device,
        **versions("onnxruntime", "onnxruntime-gpu"),
    }
    return context.store.stage(name, key, Comparison, make, compared_line)


def check_randomness(context: Context, model: OnnxModel, dataset: Dataset) -> None:
    """Refuse a model with operators that draw random numbers before hours of work, if its outputs show it.

    Raises:
        ModelError: they do.
    """
    from trtopt.compare.repeats import check_repeats, random_nodes
    from trtopt.engine.onnxruntime import open_runner

    if random_nodes(model.path):
        check_repeats(open_runner(model.path, device=context.device), dataset, model.path)


def gate(context: Context, comparison: Comparison, gates: str, name: str = "gate") -> Comparison:
    """Drift and thresholds (as the user wrote them; blank: the defaults) -> the same with a verdict."""

    def make(_: Path) -> Comparison:
        from trtopt.compare.gate import judged

        return judged(comparison, gates)

    measured = hashlib.sha256(json.dumps(encode(comparison)).encode()).hexdigest()
    key = {"comparison": measured, "gates": gates, **versions("scipy")}
    return context.store.stage(name, key, Comparison, make, judged_line)


def compared_line(comparison: Comparison) -> str:
    """One line about drift: the worst SQNR, or agreement, of the outputs."""
    errors = [output.values["sqnr"] for output in comparison.outputs if "sqnr" in output.values]
    worst = f", SQNR {min(errors):.1f} dB" + (" at worst" if len(errors) > 1 else "") if errors else ""
    return f"{comparison.samples} samples{worst if errors and math.isfinite(min(errors)) else ''}"


def judged_line(comparison: Comparison) -> str:
    """One line about the gates."""
    counts = Counter(gate.verdict for gate in comparison.gates)
    line = f"{counts['pass']}/{len(comparison.gates)} gates passed"
    line += f", {counts['fail']} failed" if counts["fail"] else ""
    return line + (f", {counts['inconclusive']} inconclusive" if counts["inconclusive"] else "")


def engine_line(engine: Engine) -> str:
    """One line about an engine: file, size, builder."""
    return f"{engine.path.name}, {engine.size_bytes / 1e6:.2f} MB, {engine.builder}"
