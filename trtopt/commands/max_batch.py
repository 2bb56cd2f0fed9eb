"""The command `trtopt bench --max-batch`: the largest batch of one target that is within limits.

Touches: the run directory, through the store; `benchmark.json` in the run directory that is the target.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trtopt.commands.bench import check_out, keep, kept, written
from trtopt.errors import (
    EnvironmentUnableError,
    MissingDependencyError,
    UsageError,
)
from trtopt.events import Emit, StageFinished, StageStarted, Warned, silent
from trtopt.plan import MaxBatchPlan
from trtopt.run import open_run
from trtopt.types import Benchmark, BenchTarget, GateResult, Report, StageOutcome, Verdict

if TYPE_CHECKING:
    from trtopt.bench.probe import Question


def max_batch(plan: MaxBatchPlan, emit: Emit = silent) -> Report:
    """Find the largest batch of a target that is within the limits on memory and latency.

    If not even one sample fits, the gate `max_batch` fails; on a CPU that the user did not ask for, it is inconclusive.

    Raises:
        TrtoptError: an argument cannot be used, or the target cannot be run.
    """
    from trtopt.bench import memory
    from trtopt.bench.gate import NO_EVIDENCE
    from trtopt.bench.inputs import Sizes
    from trtopt.stages import bench as preparing

    given = preparing.wanted(plan.target, plan.target.name or str(plan.target))
    sizes = Sizes(inputs=given.onnx.inputs, ranges=preparing.ranges(given, plan.speed.shapes, None))
    if sizes.batch:
        raise UsageError(
            f"{plan.target} takes batches of {sizes.batch} only",
            why="its first dimension is fixed",
            fix="Export the model with a dynamic batch",
        )
    start = time.perf_counter()
    with open_run(plan.run_dir, emit, plan.speed.device) as run:
        emit, store = run.emit, run.store
        check_out(store.root)
        emit(StageStarted("bench"))
        question = _answerable(preparing.questions(given, sizes, plan.speed), emit)
        takes = preparing.engine_batches(given, sizes) if question.engine else None
        limits = memory.Limits(memory=plan.memory_limit, latency=plan.latency_limit)
        limit, ran, doubts = memory.largest(question, limits, takes, emit)
        for line in doubts:
            emit(Warned(line))
        seconds = time.perf_counter() - start
        summary = f"largest batch {limit.batch} of {len(limit.probes)} tried; {limit.why}"
        emit(StageFinished("bench", seconds, summary))
        store.outcomes.append(StageOutcome(name="bench", status="ran", seconds=round(seconds, 3), summary=summary))
        target = BenchTarget(name=given.name, path=question.path, ran=ran, device=question.device)
        benchmark = Benchmark(targets=(target,), timings=(), limit=limit)
        no_evidence = question.device == "cpu" != plan.speed.device
        if limit.batch and no_evidence:
            emit(Warned(f"searched on the CPU, {NO_EVIDENCE}"))
        elif not limit.batch:
            verdict: Verdict = "inconclusive" if no_evidence else "fail"
            reason = f"{limit.why} on the CPU, {NO_EVIDENCE}" if no_evidence else limit.why
            gate = GateResult(output="", metric="max_batch", value=0.0, limit=1.0, verdict=verdict, reason=reason)
            benchmark = replace(benchmark, gates=(gate,), verdict=verdict)
        if given.run_dir is not None:
            keep(given.run_dir, replace(kept(given.run_dir) or benchmark, limit=limit), emit)
        return written(run, benchmark, allow_inconclusive=plan.allow_inconclusive)


def _answerable(questions: Sequence[Question], emit: Emit) -> Question:
    """Return the first of the questions that this machine is able to answer."""
    from trtopt.bench import memory, probe

    *others, last = questions
    for question, following in zip(others, questions[1:], strict=True):
        try:
            probe.ask(question, memory.PROBE_SECONDS)
        except (EnvironmentUnableError, MissingDependencyError) as error:
            if question.engine and not following.engine:
                emit(Warned(f"the engine does not run here ({error.why or error.what}): its graph does"))
        else:
            return question
    return last
