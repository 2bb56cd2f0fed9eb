"""The command `trtopt bench`: timings of several targets over batch sizes.

Touches: the run directory, through the store; `benchmark.json` in the run directories that are targets.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trtopt import stages
from trtopt.codec import decode, encode
from trtopt.commands import checks
from trtopt.errors import (
    InterruptedSweepError,
    OutOfMemoryError,
    StoreError,
    TrtoptError,
    UsageError,
)
from trtopt.events import Emit, Noted, StageFinished, StageStarted, Warned, silent
from trtopt.plan import BenchPlan
from trtopt.run import Run, open_run
from trtopt.store import RunStore, open_store, read_result
from trtopt.types import Benchmark, BenchTarget, Report, StageOutcome, Timing, TypedModel

FILE = "benchmark.json"


def bench(plan: BenchPlan, emit: Emit = silent) -> tuple[Report, TrtoptError | None]:
    """Time the targets over batch sizes.

    Returns:
        The report, and the error that ended the sweep early: Ctrl-C, exhausted memory, or a batch that a target does
        not support. It is None for a complete sweep. The measurements until then are in the report and in the run
        directory.

    Raises:
        TrtoptError: an argument cannot be used, or nothing could be measured.
    """
    from trtopt.bench import gate, sweep
    from trtopt.stages import bench as preparing

    if plan.allow_inconclusive and not plan.gates:
        raise UsageError("--allow-inconclusive is about gates", why="there is none", fix="Add --gate, or leave it out")
    checks.exists(plan.data)
    wanted = [preparing.wanted(path, name) for path, name in named(plan.targets)]
    with contextlib.ExitStack() as held:
        run = held.enter_context(open_run(plan.run_dir, emit, plan.speed.device))
        emit = run.emit
        check_out(run.store.root)
        samples = preparing.datasets(wanted, plan)
        stages.tell(emit, *samples.values())
        opened = []
        for given in wanted:
            opened.append(preparing.opened(given, plan, samples.get(given.name), emit))
            held.callback(opened[-1].target.session.close)
        batches, left_out = preparing.batches(opened, plan.batches)
        gate.check(plan.gates, batches, len(opened))
        for line in left_out:
            emit(Noted(line))
        for line in preparing.remarks(opened):
            emit(Warned(line))
        device = held.enter_context(preparing.gpu_readings(opened, emit))
        ran = tuple(
            BenchTarget(
                name=each.target.name,
                path=each.path,
                ran=preparing.where(each.target.session, device),
                device=each.target.session.device,
                load=each.target.session.load,
            )
            for each in opened
        )
        empty = Benchmark(targets=ran, timings=(), complete=False)
        how = sweep.Plan(
            batches=batches,
            seconds=plan.seconds,
            feed=lambda target, batch: preparing.feed(samples, target, batch),
        )
        points = sweep.sweep([each.target for each in opened], how, device, emit)
        measured, stopped = _collect(run.store, empty, points, batches, emit)
        for line in _noisy(measured.timings):
            emit(Warned(line))
        if stopped is not None:
            run.said.append(Warned(str(stopped)))
        benchmark = gate.judged(measured, plan.gates, cpu_counts=plan.speed.device == "cpu")
        for each in opened:
            if each.run_dir is not None:
                _keep_timings(each.run_dir, each.target.name, benchmark, emit)
        report = written(run, benchmark, allow_inconclusive=plan.allow_inconclusive)
    return report, stopped


def _collect(
    store: RunStore, benchmark: Benchmark, points: Iterator[tuple[Timing, ...]], batches: Sequence[int], emit: Emit
) -> tuple[Benchmark, TrtoptError | None]:
    """Measure the batch sizes one after the other, and write the timings after each of them."""
    start = time.perf_counter()
    emit(StageStarted("bench"))
    stopped: TrtoptError | None = None
    try:
        for timings in points:
            left = len(batches) - len(_batches(benchmark)) - 1
            benchmark = replace(benchmark, timings=benchmark.timings + timings, complete=not left)
            _write(store, benchmark)
    except StoreError:
        raise
    except (KeyboardInterrupt, MemoryError, TrtoptError) as error:
        stopped = _stopped(error, batches, _batches(benchmark), store.root)
        if not benchmark.timings:
            raise stopped from error
    seconds = time.perf_counter() - start
    line = f"{len(benchmark.timings)} timings, batch {', '.join(map(str, _batches(benchmark)))}"
    emit(StageFinished("bench", seconds, line))
    store.outcomes.append(StageOutcome(name="bench", status="ran", seconds=round(seconds, 3), summary=line))
    return benchmark, stopped


def _batches(benchmark: Benchmark) -> list[int]:
    """Return the batch sizes that were measured."""
    return list(dict.fromkeys(timing.batch for timing in benchmark.timings))


def _stopped(error: BaseException, batches: Sequence[int], done: Sequence[int], root: Path) -> TrtoptError:
    """Return the cause of an early end as an error that also states which timings were kept."""
    at = batches[min(len(done), len(batches) - 1)]
    kept = f"Batch {', '.join(map(str, done))} was measured, and is kept in {root / FILE}" if done else ""
    if isinstance(error, OutOfMemoryError | MemoryError):
        what, why = f"memory is exhausted at batch {at}", getattr(error, "why", str(error))
        return OutOfMemoryError(what, why=why, fix=kept or "Find the largest that fits with --max-batch")
    if isinstance(error, TrtoptError):
        return type(error)(f"batch {at}: {error.what}", why=error.why, fix=kept or error.fix)
    return InterruptedSweepError(f"interrupted at batch {at}", fix=kept)


def named(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return each target with its name in tables.

    The name is that of the file, or the whole path if two files have the same name. A target that is given again (for
    example to see the noise) is numbered.
    """
    names = [path.name for path in dict.fromkeys(paths)]
    short = len(set(names)) == len(names) and all(names)
    seen: dict[Path, int] = {}
    named = []
    for path in paths:
        count = seen[path] = seen.get(path, 0) + 1
        name = path.name if short else str(path)
        named.append((path, f"{name} ({count})" if count > 1 else name))
    return named


def check_out(run_dir: Path) -> None:
    """Raise UsageError if the run directory contains a conversion, whose report would be replaced."""
    if (run_dir / "manifest.json").is_file() and read_result(run_dir, "precision", TypedModel) is not None:
        raise UsageError(
            f"{run_dir} is a run directory of trtopt convert",
            why="its report would be replaced",
            fix="Name another with -o; what is measured of a run directory is left in it all the same",
        )


def _noisy(timings: Sequence[Timing]) -> list[str]:
    """Return a warning if timings are noisier than the target of the measurement."""
    from trtopt.bench.latency import AIM

    worst = max(timings, key=lambda timing: timing.noise, default=None)
    if worst is None or worst.noise <= AIM:
        return []
    above = sum(timing.noise > AIM for timing in timings)
    return [
        f"the mean of {above} of {len(timings)} timings is not known to {100 * AIM:g} % ({worst.target}, batch "
        f"{worst.batch}: {100 * worst.noise:.2g} %): a quieter machine, or a larger --seconds, helps"
    ]


def _keep_timings(run_dir: Path, name: str, benchmark: Benchmark, emit: Emit) -> None:
    """Write a target's timings to its own run directory, and keep an earlier result for the largest batch."""
    earlier = kept(run_dir)
    own = Benchmark(
        targets=tuple(target for target in benchmark.targets if target.name == name),
        timings=tuple(timing for timing in benchmark.timings if timing.target == name),
        complete=benchmark.complete,
        limit=earlier.limit if earlier else None,
    )
    keep(run_dir, own, emit)


def kept(run_dir: Path) -> Benchmark | None:
    """Return the earlier benchmark in a run directory, if there is one that can be read."""
    try:
        return decode(Benchmark, json.loads((run_dir / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # there is none, or it is of another version and will be replaced
        return None


def keep(run_dir: Path, benchmark: Benchmark, emit: Emit) -> None:
    """Write a benchmark to the run directory of its target, with a warning if that fails."""
    try:
        with open_store(run_dir, emit) as store:
            _write(store, benchmark)
    except (StoreError, OSError) as error:  # a warning is enough: the result is also in the report
        emit(Warned(f"not left in {run_dir}: {error}"))


def _write(store: RunStore, benchmark: Benchmark) -> None:
    store.write(FILE, json.dumps(encode(benchmark), indent=1, allow_nan=False) + "\n")


def written(run: Run, benchmark: Benchmark, *, allow_inconclusive: bool) -> Report:
    """Write the benchmark and its report to the run directory, and return the report."""
    _write(run.store, benchmark)
    model = ", ".join(target.name for target in benchmark.targets)
    return run.finish(
        Report(
            command="bench",
            verdict=benchmark.verdict,
            model=model,
            benchmark=benchmark,
            allow_inconclusive=allow_inconclusive,
        )
    )
