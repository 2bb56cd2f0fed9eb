"""The stage `compare`: the drift of a candidate from the FP32 baseline, not judged yet.

Touches: the run directory, through the store; reads the samples; the GPU, if the candidate is an engine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.candidate import ENGINE_NOT_RUN
from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.engine import Runner, compiler
from trtopt.errors import DataError, EnvironmentUnableError, MissingDependencyError, ModelError, OutOfMemoryError
from trtopt.events import Emit, Warned
from trtopt.plan import MeasurePlan
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.shards.partial import Partial
from trtopt.shards.shard import WHOLE, Shard
from trtopt.types import Comparison, Engine, OnnxModel
from trtopt.wording import counted

if TYPE_CHECKING:
    from trtopt.compare.pair import Pair
    from trtopt.compare.run import Ran


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The samples and options of a comparison.

    Attributes:
        dataset: the evaluation samples.
        measure: how outputs are interpreted and measured.
        engine: the engine that was built from the candidate. It is what is compared, if it can run here.
        calibrated_on: the fingerprints of the samples that the candidate was calibrated on.
    """

    dataset: Dataset
    measure: MeasurePlan
    engine: Engine | None = None
    calibrated_on: tuple[str, ...] = ()


def compare(
    run: Run,
    baseline: OnnxModel,
    candidate: OnnxModel,
    evaluation: Evaluation,
    name: str = "compare",
    partials: Sequence[Partial] = (),
) -> Comparison:
    """Return the drift of the candidate from the baseline, without a verdict.

    `name` is the name of the stage, if there are several. With the partial results of all shards, no model runs.
    """
    engine = compiled(evaluation.engine)
    host = _host(engine)

    def make(_: Path) -> Comparison:
        from trtopt.compare.run import Measure, measured

        measure = Measure(kinds=evaluation.measure.kinds, metrics=evaluation.measure.metrics)
        if partials:
            from trtopt.stages.recorded import replay

            ran, fingerprints = replay(partials, baseline, candidate, evaluation)
            comparison = measured(ran, evaluation.dataset, measure, emit=run.emit)
        else:
            fingerprints = {}  # recorded while the samples are loaded
            with running(run, baseline, candidate, evaluation, fingerprints) as ran:
                comparison = measured(ran, evaluation.dataset, measure, emit=run.emit)
        comparison = _as_loaded(run, comparison, (baseline, candidate), evaluation.dataset)
        known = frozenset(evaluation.calibrated_on)
        copies = len(fingerprints) - len(set(fingerprints.values()))
        if copies:
            note = f"{copies} of {len(fingerprints)} samples repeat others: bounds hold for independent samples"
            comparison = replace(comparison, warnings=(*comparison.warnings, note))
        return replace(comparison, calibrated_on=sum(fingerprint in known for fingerprint in fingerprints.values()))

    from trtopt.compare.custom import digest

    samples = evaluation.dataset.groups or evaluation.dataset
    key = {
        "baseline": baseline.digest,
        "candidate": candidate.digest,
        "engine": [engine.digest, host] if engine and host else bool(engine),
        "metrics": [digest(metric) for metric in evaluation.measure.metrics],
        "data": evaluation.dataset.digest,
        "labels": hashlib.sha256(repr(samples.labels).encode()).hexdigest(),
        "names": hashlib.sha256(repr(sorted(evaluation.dataset.shown.names.items())).encode()).hexdigest(),
        "measure": encode(evaluation.measure),
        "calibrated_on": hashlib.sha256("".join(evaluation.calibrated_on).encode()).hexdigest(),
        "device": run.place,
        **versions("onnxruntime", "onnxruntime-gpu"),
    }
    comparison = run.store.stage(name, key, Comparison, make, compared_line)
    if host and not comparison.engine:
        run.store.discard(name)  # the next run tries the engine again
        comparison = replace(comparison, engine_unable="the engine was not run, although this machine has a GPU for it")
    return comparison


@contextmanager
def running(
    run: Run,
    baseline: OnnxModel,
    candidate: OnnxModel,
    evaluation: Evaluation,
    fingerprints: dict[int, str],
    shard: Shard = WHOLE,
) -> Iterator[Ran]:
    """Load both models, and yield the outputs for a shard of the samples; fingerprints are recorded on the way."""
    from trtopt.calibrate.observe import callers
    from trtopt.compare.pair import Pair
    from trtopt.compare.repeats import check_repeats
    from trtopt.compare.run import BATCH
    from trtopt.compare.run import run as run_pair
    from trtopt.data.overlap import fingerprinted
    from trtopt.engine.onnxruntime import open_runner

    engine = compiled(evaluation.engine)
    with opened(engine, run.emit) as runner:
        # An engine runs one batch at a time. Then so do the graphs, each on all cores.
        at_once = 1 if runner else callers()
        reference, graph = (
            open_runner(path, device=run.device, callers=at_once) for path in (baseline.path, candidate.path)
        )
        check_repeats(reference, evaluation.dataset, baseline.path)
        pair = Pair(
            baseline=reference,
            candidate=runner or graph,
            graph=graph if runner else None,
            names=(baseline.path.name, engine.path.name if engine and runner else candidate.path.name),
        )
        # An engine takes batches of at most its profile.
        batch = min(BATCH, getattr(pair.candidate, "max_batch", BATCH))
        dataset = fingerprinted(evaluation.dataset, fingerprints)
        ran = run_pair(pair, dataset, emit=run.emit, batch=batch, shard=shard)
        if engine and not runner:
            baseline_ran, candidate_ran = ran.where
            ran = replace(ran, where=(baseline_ran, candidate_ran + ENGINE_NOT_RUN))
        yield ran


def _as_loaded(run: Run, comparison: Comparison, models: tuple[OnnxModel, OnnxModel], dataset: Dataset) -> Comparison:
    """Return the comparison with what users get who load the typed graph in onnxruntime's default options."""
    from trtopt.compare.loaded import loaded, warnings
    from trtopt.compare.pair import Pair
    from trtopt.engine.onnxruntime import open_as_loaded, open_runner
    from trtopt.engine.ort.rewritten import is_bf16, is_reduced

    baseline, candidate = models
    if not is_reduced(candidate.path):
        return comparison
    reference, graph = (open_runner(model.path, device=run.device) for model in models)
    try:
        runner = open_as_loaded(candidate.path)
        pair = Pair(baseline=reference, candidate=runner, graph=graph, names=(baseline.path.name, candidate.path.name))
        drifts = loaded(pair, dataset)
    except (ModelError, DataError, OutOfMemoryError) as error:
        why = f"not with onnxruntime's default options: {error}"
        if is_bf16(candidate.path):
            why += ". onnxruntime has few BF16 kernels on a CPU, and TensorRT takes BF16 from this graph"
        return replace(comparison, loaded_ran=why)
    lines = (*comparison.warnings, *warnings(drifts, candidate.path.name, runner.where))
    return replace(comparison, loaded=drifts, loaded_ran=f"{runner.where}, default options", warnings=lines)


def compiled(engine: Engine | None) -> Engine | None:
    """Return the engine if it is a file of its own, not the typed graph itself."""
    return engine if engine is not None and compiler(engine.backend) is not None else None


def _host(engine: Engine | None) -> Mapping[str, Any] | None:
    """Return what the engine would run on here; None if it cannot run, or if there is none."""
    compiling = compiler(engine.backend) if engine is not None else None
    return compiling.host() if compiling is not None else None


@contextmanager
def opened(engine: Engine | None, emit: Emit, *, streams: int = 1) -> Iterator[Runner | None]:
    """Open an engine for the block. The result is None without an engine, or where it cannot run, with a warning.

    At most `streams` runs can be in flight at the same time.
    """
    runner = None
    compiling = compiler(engine.backend) if engine is not None else None
    if engine is not None and compiling is not None and compiling.host() is not None:
        try:
            # No graphs, so that every shape is run as it is.
            runner = compiling.open(engine, graphs=False, streams=streams)
        except OutOfMemoryError:  # a busy GPU is not a reason to judge the graph instead
            raise
        except (EnvironmentUnableError, MissingDependencyError) as error:
            emit(Warned(f"the engine is not run: {error}"))
    try:
        yield runner
    finally:
        if runner is not None:
            runner.close()


def measured(pair: Pair, dataset: Dataset, plan: MeasurePlan, emit: Emit) -> Comparison:
    """Return the drift of the candidate; an engine is run with batches of at most its profile."""
    from trtopt.compare.run import BATCH, Measure, compare

    measure = Measure(kinds=plan.kinds, metrics=plan.metrics)
    largest = getattr(pair.candidate, "max_batch", BATCH)
    return compare(pair, dataset, measure, emit=emit, batch=min(BATCH, largest))


def check_randomness(run: Run, model: OnnxModel, dataset: Dataset) -> None:
    """Refuse a model with operators that draw random numbers before hours of work, if its outputs show it.

    Raises:
        ModelError: they do.
    """
    from trtopt.graph.randomness import random_nodes

    if random_nodes(model.path):
        from trtopt.compare.repeats import check_repeats
        from trtopt.engine.onnxruntime import open_runner

        check_repeats(open_runner(model.path, device=run.device), dataset, model.path)


def compared_line(comparison: Comparison) -> str:
    """Return the summary line of the drift: the number of samples, and the lowest SQNR of the outputs."""
    line = counted(comparison.samples, "sample")
    sqnrs = [output.values["sqnr"] for output in comparison.outputs if "sqnr" in output.values]
    if not sqnrs or not math.isfinite(min(sqnrs)):
        return line
    return f"{line}, {'lowest ' if len(sqnrs) > 1 else ''}SQNR {min(sqnrs):.1f} dB"
