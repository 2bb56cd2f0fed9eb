"""The stages that build the engine and judge it: build, compare, gate.

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

ENGINE_NOT_RUN = " (the typed graph of the engine; TensorRT itself was not run)"


def build(context: Context, typed: TypedModel, ranges: Sequence[ShapeRange], plan: BuildPlan) -> Engine:
    """Build the engine (`model.engine`) and audit its precision. With `onnxruntime` the typed ONNX is the engine.

    Args:
        context: the context of the stage.
        typed: the typed ONNX graph.
        ranges: the shape ranges of its dynamic inputs.
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
    """The samples and options of a comparison.

    Attributes:
        dataset: the evaluation samples.
        measure: how outputs are interpreted and measured.
        ran: a remark on where the candidate ran, appended to it; may be empty.
        calibrated_on: the fingerprints of the samples that the candidate was calibrated on.
    """

    dataset: Dataset
    measure: MeasurePlan
    ran: str = ""
    calibrated_on: tuple[str, ...] = ()


def compare(
    context: Context, baseline: OnnxModel, candidate: OnnxModel, evaluation: Evaluation, name: str = "compare"
) -> Comparison:
    """Return the drift of the candidate from the baseline, without a verdict.

    `name` is the name of the stage, if there are several.
    """

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
        # The fingerprints are recorded while the samples are loaded.
        fingerprints: dict[int, str] = {}
        comparison = compare(pair, fingerprinted(evaluation.dataset, fingerprints), measure, emit=context.emit)
        known = frozenset(evaluation.calibrated_on)
        return replace(
            comparison,
            candidate_ran=comparison.candidate_ran + evaluation.ran,
            calibrated_on=sum(fingerprint in known for fingerprint in fingerprints.values()),
        )

    from trtopt.compare.own import digest

    samples = evaluation.dataset.groups or evaluation.dataset
    key = {
        "baseline": baseline.digest,
        "candidate": candidate.digest,
        "metrics": [digest(metric) for metric in evaluation.measure.metrics],
        "data": evaluation.dataset.digest,
        "labels": hashlib.sha256(repr(samples.labels).encode()).hexdigest(),
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
    """Return the comparison with the results of its gates and a verdict.

    Args:
        context: the context of the stage.
        comparison: the measured drift.
        gates: the thresholds, in the syntax of `--gate`; the defaults if blank.
        name: the name of the stage, if there are several.
    """

    def make(_: Path) -> Comparison:
        from trtopt.compare.gate import judged

        return judged(comparison, gates)

    # Gates are judged again only if the measured drift or the thresholds have changed.
    measured = hashlib.sha256(json.dumps(encode(comparison)).encode()).hexdigest()
    key = {"comparison": measured, "gates": gates, **versions("scipy")}
    return context.store.stage(name, key, Comparison, make, judged_line)


def compared_line(comparison: Comparison) -> str:
    """Return the summary line of the drift: the number of samples, and the lowest SQNR of the outputs."""
    line = f"{comparison.samples} samples"
    sqnrs = [output.values["sqnr"] for output in comparison.outputs if "sqnr" in output.values]
    if not sqnrs or not math.isfinite(min(sqnrs)):
        return line
    return f"{line}, {'lowest ' if len(sqnrs) > 1 else ''}SQNR {min(sqnrs):.1f} dB"


def judged_line(comparison: Comparison) -> str:
    """Return the summary line of the gates: how many passed, and how many did not."""
    counts = Counter(gate.verdict for gate in comparison.gates)
    line = f"{counts['pass']}/{len(comparison.gates)} gates passed"
    line += f", {counts['fail']} failed" if counts["fail"] else ""
    return line + (f", {counts['inconclusive']} inconclusive" if counts["inconclusive"] else "")


def engine_line(engine: Engine) -> str:
    """Return the summary line of an engine: file, size and builder."""
    return f"{engine.path.name}, {engine.size_bytes / 1e6:.2f} MB, {engine.builder}"
