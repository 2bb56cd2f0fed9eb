"""The stage `speed`: the engine timed beside those of FP32 and of 16 bits, in turns, where an engine runs.

Quantization that is not faster costs accuracy for nothing, so this is part of a conversion's verdict, not of another
command. Without a GPU nothing is timed: a gate on speed is then inconclusive.

Touches: the run directory, through the store; temporary folders; the GPU.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trtopt.bench import gate as gating
from trtopt.bench import inputs
from trtopt.bench.gate import Gate
from trtopt.codec import encode
from trtopt.data.dataset import Dataset, Feed
from trtopt.engine import Compiler, backend, compiler
from trtopt.errors import StoreError, TrtoptError
from trtopt.events import Event, Progress, silent
from trtopt.precision import formats
from trtopt.run import Run
from trtopt.stages.build import FILE, ordered, pinned
from trtopt.stages.layer_times import layer_times
from trtopt.stages.made import Made
from trtopt.stages.precision import typed_graph
from trtopt.stages.repair import is_quantized
from trtopt.stages.target import Target as Wanted
from trtopt.store import read_result
from trtopt.types import GUARDED, Benchmark, BenchTarget, Engine, GateResult, OnnxModel, Timing

SECONDS = 0.5
"""Approximate measuring time per engine and batch size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """The timed engine with its alternatives (precisions, slowest last), its inputs, and the batch sizes."""

    made: Made
    engine: Engine
    compiling: Compiler
    model: OnnxModel
    sizes: inputs.Sizes
    batches: tuple[int, ...]
    alternatives: tuple[str, ...]


def speed(run: Run, made: Made, dataset: Dataset | None, gates: Sequence[Gate]) -> Benchmark | None:
    """Return the timings of the engine, `speedup` compared with the next higher precision, and the gates on them.

    None without gates where the engine does not run. An error is a warning: without an alternative that cannot be
    built the engine is timed all the same.

    Raises:
        UsageError: a gate names a batch size that the engine does not have, or a speedup with nothing to compare.
    """
    compiling = compiler(made.engine.backend) if made.engine is not None else None
    if made.engine is None or compiling is None or compiling.host() is None:
        why = "the engine does not run on this machine: convert on a machine with the GPU, or leave the gate out"
        if any(outcome.name == "target" for outcome in run.store.outcomes):
            why = "the engine is judged on the device, by the commands in build.sh"
        return _unmeasured(gates, why) if gates else None
    subject = _subject(run, made, made.engine, compiling, gates)
    gating.check(gates, subject.batches, 1 + len(subject.alternatives))

    def make(_: Path) -> Benchmark:
        return _measured(run, subject, dataset)

    key = {
        "engine": made.engine.digest,
        "host": compiling.host(),
        "model": subject.model.digest,
        "batches": subject.batches,
        "alternatives": subject.alternatives,
        "ranges": [asdict(entry) for entry in made.ranges],
        "plan": encode(made.plan),
        "seen": made.seen.digest if made.seen else "",
        "data": dataset.digest if dataset is not None else "",
    }
    try:
        benchmark = run.store.stage("speed", key, Benchmark, make, timed_line)
    except StoreError:
        raise
    except TrtoptError as error:  # the comparison is complete, and must reach the report
        run.warn(f"the engine is not timed: {error}")
        return _unmeasured(gates, str(error)) if gates else None
    guarded = sum(each.reason.startswith(GUARDED) for each in made.target.keep)
    for line in unpaid(benchmark, guarded):
        run.warn(line)
    data = dataset.digest if dataset is not None else ""
    layers = layer_times(
        run, made.engine, compiling, subject.batches[-1], lambda batch: _feed(subject, dataset, batch), data
    )
    benchmark = replace(benchmark, layers=layers)
    return gating.judged(benchmark, gates, cpu_counts=False)


def timed_batches(sizes: inputs.Sizes, gates: Sequence[Gate]) -> tuple[int, ...]:
    """Return the batch sizes at which an engine is timed: the smallest and the usual one, and those of the gates."""
    if sizes.batch:
        return (sizes.batch,)
    free = [entry for entry in sizes.ranges if entry.min and entry.min[0] < entry.max[0]]
    usual = {size for entry in free for size in (entry.min[0], entry.opt[0])}
    largest = min(entry.max[0] for entry in free)
    return tuple(sorted(size for size in usual | {gate.batch for gate in gates} if 0 < size <= largest))


def timed_line(benchmark: Benchmark) -> str:
    """Return the summary line: the latency of the engine, and the speedup, by batch size."""
    parts = []
    for timing in _of_engine(benchmark):
        gain = f" ({timing.speedup:.2f}x {benchmark.targets[0].name})" if timing.speedup == timing.speedup else ""
        parts.append(f"{timing.mean:.3f} ms at batch {timing.batch}{gain}")
    return ", ".join(parts)


def unpaid(benchmark: Benchmark, guarded: int) -> list[str]:
    """Return a warning for each batch size at which the engine is not faster than the higher precision.

    `guarded` is the number of nodes that the guard keeps.
    """
    name, other = benchmark.targets[-1].name, benchmark.targets[0].name
    nodes = "the node that the guard keeps costs" if guarded == 1 else f"the {guarded} nodes that the guard keeps cost"
    otherwise = f", or --no-guard: {nodes} reformats" if guarded else ""
    return [
        f"{name} does not pay at batch {timing.batch}: {timing.mean:.4g} ms, {timing.speedup:.3g} times as fast as "
        f"{other} (95 % bounds {timing.bounds['speedup'].low:.3g} to {timing.bounds['speedup'].high:.3g}). "
        f"Use --precision {other.lower()}{otherwise}"
        for timing in _of_engine(benchmark)
        if timing.speedup <= 1.0
    ]


def _of_engine(benchmark: Benchmark) -> list[Timing]:
    """Return the timings of the engine itself, without copies."""
    own = benchmark.targets[-1].name
    return [timing for timing in benchmark.timings if timing.target == own and not timing.copies]


def _unmeasured(gates: Sequence[Gate], reason: str) -> Benchmark:
    """Return a benchmark without timings, with every gate inconclusive for that reason."""
    results = tuple(
        GateResult(
            output="engine", metric=gate.metric, value=0.0, limit=gate.limit, verdict="inconclusive", reason=reason
        )
        for gate in gates
    )
    return Benchmark(targets=(), timings=(), complete=False, gates=results, verdict="inconclusive")


def _subject(run: Run, made: Made, engine: Engine, compiling: Compiler, gates: Sequence[Gate]) -> _Subject:
    sizes = inputs.Sizes(inputs=made.typed.onnx.inputs, ranges=made.ranges)
    return _Subject(
        made=made,
        engine=engine,
        compiling=compiling,
        model=read_result(run.store.root, "prepare", OnnxModel) or made.model,  # before equalization
        sizes=sizes,
        batches=timed_batches(sizes, gates),
        alternatives=_alternatives(made),
    )


def _alternatives(made: Made) -> tuple[str, ...]:
    """Return the higher precisions to compare with, the lowest of them first; none for a model given quantized."""
    if is_quantized(made.model) or made.target.precision == "fp32":
        return ()
    if made.target.precision in formats(16):
        return ("fp32",)
    half = made.target.rest if made.target.rest in formats(16) else "fp16"
    return (half, "fp32")


def _measured(run: Run, subject: _Subject, dataset: Dataset | None) -> Benchmark:
    """Build the alternatives, load all engines, and time them in turns."""
    from trtopt.bench import sweep
    from trtopt.bench.targets import Target, open_engine

    def emit(event: Event) -> None:
        run.emit(replace(event, stage="speed") if isinstance(event, Progress) else event)

    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="trtopt-")))
        engines = dict(_built(run, subject, folder)) | {subject.made.target.precision: subject.engine}
        loaded = []
        for name, engine in engines.items():
            session = open_engine(engine)
            held.callback(session.close)
            loaded.append(Target(name=name.upper(), sizes=subject.sizes, session=session))
        how = sweep.Plan(batches=subject.batches, seconds=SECONDS, feed=lambda _, batch: _feed(subject, dataset, batch))
        timings = [timing for point in sweep.sweep(loaded, how, None, emit) for timing in point]
        targets = tuple(
            BenchTarget(
                name=target.name,
                path=Path(FILE) if target is loaded[-1] else Path(target.name.lower()),
                ran=target.session.where,
                device=target.session.device,
                load=target.session.load,
            )
            for target in loaded
        )
    return Benchmark(targets=targets, timings=tuple(timings))


def _feed(subject: _Subject, dataset: Dataset | None, batch: int) -> Feed:
    return inputs.random(subject.sizes, batch) if dataset is None else inputs.from_data(dataset, batch)


def _built(run: Run, subject: _Subject, folder: Path) -> Iterator[tuple[str, Engine]]:
    """Yield the engines of the alternatives that can be built, by their precision."""
    made = subject.made
    for number, name in enumerate(subject.alternatives):
        run.emit(Progress("speed", number, len(subject.alternatives), f"building in {name.upper()}"))
        out = folder / name
        out.mkdir()
        target = Wanted(precision=name, rest=name, bias_correction=False)
        try:
            typed = typed_graph(out, subject.model, target, None, made.seen)
            order = ordered(typed, made.ranges, pinned(run, made.plan), run.device)
            yield name, backend(made.plan.backend).build(order, out / FILE, emit=silent)
        except TrtoptError as error:
            run.warn(f"{name.upper()} is not timed beside the engine: {error}")
