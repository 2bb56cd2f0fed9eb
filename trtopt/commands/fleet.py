"""The command `trtopt fleet`: a plan for several models on one or more GPUs, and the files that run it.

Touches: reads the runs and the previous plan; writes the folder of the fleet; a server, to verify.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trtopt.bench import memory
from trtopt.commands.bench import kept
from trtopt.commands.package import model_name, source
from trtopt.errors import UsageError
from trtopt.events import Emit, StageFinished, StageStarted, Warned, silent
from trtopt.fleet import file, folder, planning, shortage, table
from trtopt.fleet.demand import Demand, Fleet, Gpu, measured
from trtopt.fleet.plan import FILE, Plan, Strategy, read
from trtopt.fleet.servers import given, servers
from trtopt.serve import axes, config, folders, verify
from trtopt.serve.repository import Folder
from trtopt.stages.bench import Wanted, ranges, wanted
from trtopt.types import Benchmark, Report, ShapeRange, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """A fleet to plan, and where to write it.

    Attributes:
        models: the file that names the models.
        gpus: the GPUs.
        strategy: how instances are chosen.
        options: how the models are packaged.
        out: the folder to write; None to write nothing.
        previous: the plan that runs now; None for that in `out`, if there is one.
        mps: let NVIDIA's MPS limit the memory of each server.
        verify: load the models in a real server, and compare answers.
    """

    models: Path
    gpus: tuple[Gpu, ...]
    strategy: Strategy
    options: folders.Options
    out: Path | None
    previous: Path | None = None
    mps: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The outcome.

    Attributes:
        plan: the plan.
        shortages: what is not served as asked, one line per model; nothing is written then.
        out: the folder that was written; None if none was.
        restart: servers whose models changed; none at the first run.
        to_build: scripts that build engines, with the reason for each; a server loads those models after that.
        verified: the outcome of the check of each model.
    """

    plan: Plan
    shortages: tuple[str, ...]
    out: Path | None = None
    restart: tuple[str, ...] = ()
    to_build: tuple[tuple[Path, str], ...] = ()
    verified: tuple[verify.Verified, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A model of the file, and what to package of it; None if it has no run."""

    demand: Demand
    packaged: folders.Model | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """A plan to write, the one that runs now, and the models to package by name."""

    plan: Plan
    previous: Plan | None
    models: Mapping[str, folders.Model]


def fleet(plan: FleetPlan, emit: Emit = silent) -> Planned:
    """Plan a fleet and, if everything is served as asked, write its folder.

    Raises:
        UsageError: the file, a run or a flag cannot be used.
        MissingDependencyError: tritonclient or PyYAML is not installed.
        StoreError: the folder cannot be written.
        TrtoptError: a run cannot be read or packaged.
    """
    stated, process = file.read(plan.models)
    if plan.out is not None:
        config.protobuf()
        folder.check_place(plan.out)
    models = [_model(each, emit) for each in stated]
    names = [model.demand.name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two models would be named {twice[0]}", fix="Give each a name in the file")
    asked = Fleet(demands=tuple(model.demand for model in models), gpus=plan.gpus, process=process)
    previous = _previous(plan)
    emit(StageStarted("plan"))
    start = time.perf_counter()
    made = planning.plan(asked, plan.strategy, previous)
    emit(StageFinished("plan", time.perf_counter() - start, f"models: {len(names)}, GPUs: {len(plan.gpus)}"))
    shortages = shortage.shortages(made)
    if shortages or plan.out is None:
        return Planned(plan=made, shortages=shortages)
    folder.check_models(plan.out, made, previous)
    packaged = {model.demand.name: _packaged(model) for model in models}
    return _written(plan, plan.out, _Change(plan=made, previous=previous, models=packaged), emit)


def report(planned: Planned) -> Report:
    """Return the outcome as a report, with up to three gates per model: its rate, its limit, and its answers."""
    gates = (*shortage.gates(planned.plan), *verify.gates(planned.verified))
    verdict: Verdict = "fail" if planned.shortages else "pass"
    return Report(
        command="fleet",
        verdict=verdict,
        model=", ".join(service.model for service in planned.plan.services),
        benchmark=Benchmark(
            targets=(),
            timings=(),
            gates=gates,
            verdict=verdict,
            tables=(table.gpus(planned.plan), table.models(planned.plan)),
        ),
        warnings=tuple(folders.to_build(script, why) for script, why in planned.to_build),
        notes=("nothing was written" if planned.out is None else f"{planned.out} is written",),
    )


def _previous(plan: FleetPlan) -> Plan | None:
    if plan.previous is not None:
        return read(plan.previous)
    return read(plan.out / FILE) if plan.out is not None and (plan.out / FILE).is_file() else None


def _model(stated: file.Stated, emit: Emit) -> _Model:
    """Return a model with what is known of its run."""
    if stated.run is None:
        return _Model(demand=file.demand(stated, stated.name, file.Known()), packaged=None)
    name = stated.name or model_name(stated.run)
    run = wanted(stated.run, name)
    shapes = ranges(run, (), None)
    demand = file.demand(stated, name, _known(run, shapes, emit))
    if demand.urgent and not demand.largest:
        raise UsageError(
            f"{name}: urgent needs a batch axis", why="a model without one has no priorities", fix="Leave it out"
        )
    return _Model(demand=demand, packaged=folders.Model(name=name, runs=(source(run),), shapes=shapes))


def _known(run: Wanted, shapes: tuple[ShapeRange, ...], emit: Emit) -> file.Known:
    """Return what is known of a run: from its bench table, its memory measurement, its engine and its graph."""
    target = run.run_dir or run.onnx.path
    benchmark = kept(run.run_dir) if run.run_dir else None
    axis = axes.prove(run.onnx, shapes)
    known = file.Known(
        weights=float(run.engine.size_bytes if run.engine is not None else memory.weights(run.onnx.path)),
        times=measured(benchmark.timings) if benchmark else (),
        largest=axis.largest,
        measure=f"trtopt bench {target} && trtopt bench {target} --max-batch",
    )
    if benchmark is None:
        return known
    limit = benchmark.limit
    if limit is not None:
        known = replace(
            known,
            weights=float(limit.weights),
            context=float(max(limit.bytes_fixed - limit.base - limit.weights, 0)),
            per_sample=limit.bytes_per_sample,
        )
    if any(target.device == "cpu" for target in benchmark.targets) or (limit is not None and limit.device == "cpu"):
        emit(Warned(f"{run.name}: its time or memory was measured on a CPU: measure it on the GPU that serves"))
    return known


def _packaged(model: _Model) -> folders.Model:
    if model.packaged is None:
        raise UsageError(
            f"{model.demand.name} has no run to package", fix="Name its run in the file, or plan only, with --dry-run"
        )
    return model.packaged


def _written(plan: FleetPlan, out: Path, change: _Change, emit: Emit) -> Planned:
    """Write the folder of a fleet, or what changed in it."""
    made = change.plan
    repositories: dict[str, list[Folder]] = {}
    claims: list[verify.Claim] = []
    to_build: list[tuple[Path, str]] = []
    for server in servers(made):
        for service in server.models(made):
            demand = made.fleet.demand(service.model)
            options = replace(plan.options, given=given(made, server, service), priorities=2 if demand.urgent else 0)
            each = folders.make(change.models[service.model], options, emit)
            repositories.setdefault(server.repository, []).extend(each.folders)
            claims += [claim for claim in each.claims if claim.name not in {known.name for known in claims}]
            if each.missing:
                to_build.append((out / server.repository / service.model / "build.sh", each.missing))
    verified: tuple[verify.Verified, ...] = ()
    with folder.staged(out, repositories) as stage:
        if plan.verify:
            verified = _verified(repositories, stage, claims)
        folder.complete(stage, made, plan.options.image.reference, mps=plan.mps)
        done = folder.update(out, stage, made, change.previous)
    return Planned(
        plan=made,
        shortages=(),
        out=out,
        restart=folder.changed_servers(done) if change.previous is not None else (),
        to_build=tuple(entry for entry in to_build if not (entry[0].parent / "1/model.plan").exists()),
        verified=verified,
    )


def _verified(
    repositories: Mapping[str, list[Folder]], stage: Path, claims: list[verify.Claim]
) -> tuple[verify.Verified, ...]:
    """Load each repository in a real server, and check the models that are in none before it."""
    done: list[verify.Verified] = []
    for name, models in repositories.items():
        own = [claim for claim in claims if claim.name in {model.name for model in models}]
        left = [claim for claim in own if claim.name not in {each.name for each in done}]
        done += verify.verify(models, stage / name, left)
    return tuple(done)
