"""The stage `compare`: the drift of a candidate from the FP32 baseline, not judged yet.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.plan import MeasurePlan, output_kinds
from trtopt.stages.context import Context, versions
from trtopt.types import Comparison, OnnxModel


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
        from trtopt.calibrate.observe import callers
        from trtopt.compare.repeats import check_repeats
        from trtopt.compare.run import Measure, Pair, compare
        from trtopt.data.overlap import fingerprinted
        from trtopt.engine.onnxruntime import open_runner

        pair = Pair(
            baseline=open_runner(baseline.path, device=context.device, callers=callers()),
            candidate=open_runner(candidate.path, device=context.device, callers=callers()),
            names=(baseline.path.name, candidate.path.name),
        )
        check_repeats(pair.baseline, evaluation.dataset, baseline.path)
        measure = Measure(kinds=output_kinds(evaluation.measure.kinds), metrics=evaluation.measure.metrics)
        # The fingerprints are recorded while the samples are loaded.
        fingerprints: dict[int, str] = {}
        comparison = compare(pair, fingerprinted(evaluation.dataset, fingerprints), measure, emit=context.emit)
        known = frozenset(evaluation.calibrated_on)
        copies = len(fingerprints) - len(set(fingerprints.values()))
        if copies:
            note = f"{copies} of {len(fingerprints)} samples repeat others: bounds hold for independent samples"
            comparison = replace(comparison, warnings=(*comparison.warnings, note))
        return replace(
            comparison,
            candidate_ran=comparison.candidate_ran + evaluation.ran,
            calibrated_on=sum(fingerprint in known for fingerprint in fingerprints.values()),
        )

    from trtopt.compare.custom import digest

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


def compared_line(comparison: Comparison) -> str:
    """Return the summary line of the drift: the number of samples, and the lowest SQNR of the outputs."""
    line = f"{comparison.samples} samples"
    sqnrs = [output.values["sqnr"] for output in comparison.outputs if "sqnr" in output.values]
    if not sqnrs or not math.isfinite(min(sqnrs)):
        return line
    return f"{line}, {'lowest ' if len(sqnrs) > 1 else ''}SQNR {min(sqnrs):.1f} dB"
