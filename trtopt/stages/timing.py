"""The stage `timing`: the layers of real engines, timed, and the nodes that they show must not be quantized.

Engines are built without any quantized node, and with all of them. Nodes that make the second one differ from its own
graph are excluded, and those that quantization does not make faster: less drift for nothing. What was excluded changes
how the rest fuses, so that the engine without it is built and timed, too, and must not be slower. If what remains is
not right, or not faster than the engine without any quantized node, nothing is quantized.

Touches: the run directory, through the store; temporary folders; the GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from trtopt.bench import inputs
from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.engine import Compiler, backend, compiler
from trtopt.errors import AuditError, BuildError, EnvironmentUnableError
from trtopt.events import Progress, silent
from trtopt.plan import BuildPlan
from trtopt.run import Run
from trtopt.stages.build import FILE, ordered, own_cache, pinned
from trtopt.stages.fault import REBUILDS, computes, find
from trtopt.stages.made import Made
from trtopt.stages.mixed import Subject, Trials
from trtopt.stages.precision import typed_graph
from trtopt.stages.target import Target
from trtopt.times import write
from trtopt.tune import timed
from trtopt.types import EngineFault, EngineTimes, Keep, ShapeRange, TimedLayer
from trtopt.wording import counted

RUNS = 50
"""Runs in which layers are timed."""
_ROUNDS = 4
"""Times that nodes are excluded: each exclusion changes how the others fuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The place of engines: the shape ranges of the inputs, the options, and samples to run."""

    ranges: tuple[ShapeRange, ...]
    plan: BuildPlan
    samples: Dataset


def check_timing(plan: BuildPlan, flag: str) -> None:
    """Raise EnvironmentUnableError where no engine can be timed; `flag` is what asked for it."""
    compiling = compiler(plan.backend)
    if compiling is None or compiling.host() is None:
        why = "there is no GPU here" if compiling else f"--backend {plan.backend} builds no engine"
        fix = "Use --speed macs or bytes" if flag.startswith("--speed") else f"Leave {flag} out"
        raise EnvironmentUnableError(f"{flag} is not possible", why=why, fix=fix)


def timing(run: Run, subject: Subject, site: Site, name: str = "timing") -> tuple[Target, EngineTimes]:
    """Return the target without the nodes that make its engine wrong, or not faster, and the times of its layers.

    `name` is that of the stage.

    Raises:
        TrtoptError: an engine cannot be built or run.
    """
    compiling = compiler(site.plan.backend)
    assert compiling is not None  # `check_timing`
    key = {
        "baseline": subject.baseline.digest,
        "model": subject.model.digest,
        "target": asdict(subject.target),
        "table": dict(sorted(subject.table.scales.items())),
        "seen": [subject.seen.digest, subject.seen.correction],
        "data": site.samples.digest,
        "ranges": [asdict(entry) for entry in site.ranges],
        "plan": encode(site.plan),
        "host": compiling.host(),
        **compiling.key(site.plan),
    }

    def make(_: Path) -> EngineTimes:
        return _Engines(run, subject, site, compiling).settled()

    found = run.store.stage(name, key, EngineTimes, make, timing_line)
    return replace(subject.target, keep=(*subject.target.keep, *found.keep)), found


def work_of(trials: Trials) -> timed.Work:
    """Return what the times of layers that compute several nodes are divided by."""
    from trtopt.tune.costs import both

    return {node.name or "": both(node, trials.request.sizes) for node in trials.graph.graph}


def timing_line(times: EngineTimes) -> str:
    """Return the summary line: the time of the layers of both engines, and the number of excluded nodes."""
    half, quantized = (float(np.median(timed.total(each))) for each in (times.half, times.quantized))
    text = f"layers take {quantized:.3f} ms, without quantization {half:.3f} ms"
    count = len(times.keep)
    return text + (f"; {counted(count, 'node')} excluded: {times.keep[0].reason}" if count else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """An engine: what it was made from, its timed layers, whether it computes its graph, and if not, what is wrong.

    `times` are the content of the run's timing cache that leads to its kernels; empty if there is none.
    """

    made: Made
    layers: tuple[TimedLayer, ...]
    right: bool
    times: bytes
    fault: EngineFault | None = None


class _Engines:
    """The engines of a network with some nodes kept in higher precision."""

    def __init__(self, run: Run, subject: Subject, site: Site, compiling: Compiler) -> None:
        self._run, self._subject, self._site, self._compiling = run, subject, site, compiling
        self._trials = Trials(run, subject)
        self._work = work_of(self._trials)
        self._cache = own_cache(run, site.plan)
        self._builds = 0

    def settled(self) -> EngineTimes:
        """Return the times of both engines, after nodes were excluded.

        The run's timing cache is then the one that leads to the kernels of the engine that was settled on.
        """
        half = self._built([Keep(pattern=node) for node in sorted(Trials.nodes(self._trials.groups))])
        keep: list[Keep] = []
        best = self._attempt(keep)
        for _ in range(_ROUNDS):
            more = (self._wrong(best) or self._slower(half, best, keep)) if best else []
            if best is None or not more:
                break
            other = self._attempt([*keep, *more])
            if other is None:
                break
            if best.right and timed.is_slower(timed.total(other.layers), timed.total(best.layers)):
                nodes = ", ".join(each.pattern for each in more)
                self._run.note(f"{nodes}: quantization pays here only as it spares the nodes beside them a reformat")
                break
            keep, best = [*keep, *more], other
        if best is not None and not (reason := self._useless(half, best)):
            self._restore(best)
            return EngineTimes(half=half.layers, quantized=best.layers, keep=tuple(keep))
        self._restore(half)
        rest = sorted(Trials.nodes(self._trials.groups) - {each.pattern for each in keep})
        keep += [Keep(pattern=node, reason=reason if best else "no engine with INT8 can be built") for node in rest]
        return EngineTimes(half=half.layers, quantized=half.layers, keep=tuple(keep))

    def _useless(self, half: _Built, best: _Built) -> str:
        """Return why nothing should be quantized; empty if the engine is right, and faster as a whole.

        The times of single nodes do not tell: layers that belong to none, such as reformats, can take more than
        quantization saves.
        """
        if not best.right:
            return "the engine is wrong with INT8, whatever was excluded"
        before, after = timed.total(half.layers), timed.total(best.layers)
        if timed.is_slower(before, after):
            return ""
        with_it, without = (f"{np.median(each):.4f} ms" for each in (after, before))
        return f"INT8 is not faster as a whole: the layers of its engine take {with_it}, {without} without it"

    def _wrong(self, built: _Built) -> list[Keep]:
        """Return the nodes that make an engine differ from its graph."""
        fault = built.fault
        if fault is None:
            return []
        if not fault.nodes:
            self._run.warn(f"the engine with everything quantized is wrong, and nothing was excluded: {fault.reason}")
        return [
            Keep(pattern=node, reason=f"the engine is wrong with it quantized: {fault.reason}") for node in fault.nodes
        ]

    def _slower(self, half: _Built, built: _Built, keep: Sequence[Keep]) -> list[Keep]:
        """Return the nodes of the groups that quantization does not make faster, and that are not excluded yet."""
        excluded = {each.pattern for each in keep}
        groups = [group for group in self._trials.groups if not excluded & {*group.nodes}]
        return [
            Keep(
                pattern=node, reason=f"INT8 is not faster here: {each.quantized:.4f} ms, {each.half:.4f} ms without it"
            )
            for each in timed.slower(groups, half.layers, built.layers, self._work)
            for node in each.group.nodes
        ]

    def _attempt(self, keep: Sequence[Keep]) -> _Built | None:
        """Return the engine as `_built` does, built again with the kernels timed anew while it is wrong.

        If it cannot be built, return None, with a warning.
        """
        try:
            built = self._built(keep)
            for _ in range(REBUILDS if self._cache else 0):
                if built.right:
                    break
                self._run.store.forget_times()
                built = self._built(keep)
            return built if built.right else replace(built, fault=find(self._run, built.made, self._site.samples))
        except (AuditError, BuildError) as error:
            self._run.warn(f"an engine could not be tried: {error}")
            return None

    def _built(self, keep: Sequence[Keep]) -> _Built:
        """Build an engine in which these nodes are kept, run it beside its graph, and time its layers."""
        from trtopt.calibrate.ranges import few

        run, subject, site = self._run, self._subject, self._site
        self._builds += 1
        run.emit(Progress("timing", self._builds, 0, "engines"))
        target = replace(subject.target, keep=(*subject.target.keep, *keep))
        with tempfile.TemporaryDirectory(prefix="trtopt-") as name:
            folder = Path(name)
            typed = typed_graph(folder, subject.model, target, subject.table, subject.seen)
            order = ordered(typed, site.ranges, pinned(run, site.plan), run.device)
            engine = backend(site.plan.backend).build(order, folder / FILE, emit=silent)
            made = Made(
                baseline=subject.baseline,
                model=subject.model,
                target=target,
                table=subject.table,
                seen=subject.seen,
                typed=typed,
                engine=engine,
                unable=None,
                ranges=site.ranges,
                plan=site.plan,
            )
            sizes = inputs.Sizes(inputs=typed.onnx.inputs, ranges=site.ranges)
            usual = next((entry.opt[0] for entry in site.ranges if entry.opt), 1)
            feed = inputs.from_data(site.samples, sizes.batch or usual)
            times = self._compiling.layer_times(engine, feed, RUNS)
            right = computes(run, made, few(site.samples))
        return _Built(
            made=made,
            layers=timed.joined(engine.layers, times),
            right=right,
            times=self._cache.read_bytes() if self._cache and self._cache.exists() else b"",
        )

    def _restore(self, built: _Built) -> None:
        """Write the timing cache that leads to the kernels of this engine."""
        if self._cache and built.times:
            write(self._cache, built.times)
