"""`--ray`: a command on all workers of a Ray cluster. It is `--shard` on each of them, and then `trtopt merge`.

Of a benchmark, not the data are divided but the targets: each has a worker, and its GPU, to itself.

Touches: the cluster; as the command itself.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from trtopt.codec import decode, encode
from trtopt.commands import bench, calibrate, compare, predict, sensitivity
from trtopt.commands.merge import Merged, merge
from trtopt.errors import UsageError
from trtopt.events import Emit, Progress, StageFinished, StageStarted, silent
from trtopt.plan import BenchPlan, ComparePlan, ConvertPlan, DataPlan, PredictPlan
from trtopt.run import open_run
from trtopt.shards.cluster import Cluster, each_shard
from trtopt.shards.partial import partial_name
from trtopt.shards.shard import Shard
from trtopt.types import Benchmark, Report

Plan = ConvertPlan | ComparePlan | PredictPlan
STAGE = "shards"


def spread(plan: Plan, cluster: Cluster, emit: Emit = silent, *, kind: str = "") -> Merged:
    """Run a command on all workers of a cluster, and return its table, report or rows.

    The partial results are kept beside the output if a shard fails, and removed otherwise. `kind` is the command; by
    default it is that of the plan, which is `calibrate` for the plan of a conversion.

    Raises:
        UsageError: the data are Python objects.
        DataError: a shard failed; the message names it.
        TrtoptError: as the command.
    """
    plan = _everywhere(plan)
    kind = kind or _kind(plan)
    out = plan.out if isinstance(plan, PredictPlan) else _folder(plan)
    start, paths = time.perf_counter(), []
    emit(StageStarted(STAGE))
    for shard, data in each_shard(cluster, partial(_work, kind, plan, Path.cwd())):
        out.parent.mkdir(parents=True, exist_ok=True)
        name = partial_name(shard)
        path = out.with_name(f"{out.name}.{name}") if isinstance(plan, PredictPlan) else out / f"{kind}.{name}"
        path.write_bytes(data)
        paths.append(path)
        emit(Progress(STAGE, len(paths), shard.count, f"shard {shard}"))
    emit(StageFinished(STAGE, time.perf_counter() - start, f"{len(paths)} shards on Ray"))
    result, _ = merge(paths, out, emit)
    for path in paths:
        path.unlink(missing_ok=True)
    return result


def spread_bench(plan: BenchPlan, cluster: Cluster, emit: Emit = silent) -> Report:
    """Time each target on a worker of its own, and return the report of all.

    The targets are not timed in turns, so there is no `speedup`.

    Raises:
        UsageError: the data are Python objects, a target is given twice, or a gate cannot be judged.
        DataError: a target failed; the message names it.
        TrtoptError: as `bench`.
    """
    from trtopt.bench import gate

    if len(set(plan.targets)) < len(plan.targets):
        raise UsageError("a target is given twice", why="each has a worker of its own", fix="Name each once")
    if any(each.kind == "speedup" for each in plan.gates):
        raise UsageError(
            "--gate speedup cannot be combined with --ray",
            why="targets on different workers are not timed in turns",
            fix="Leave out one of them",
        )
    targets = tuple(map(_absolute, plan.targets))
    own = replace(plan, targets=targets, data=plan.data and _data(plan.data), gates=(), allow_inconclusive=False)
    with open_run(plan.run_dir, emit, plan.speed.device) as run:
        bench.check_out(run.store.root)
        start, found = time.perf_counter(), {}
        run.emit(StageStarted(STAGE))
        for shard, data in each_shard(cluster, partial(_timed, own, Path.cwd()), [str(path) for path in plan.targets]):
            found[shard.number] = decode(Benchmark, json.loads(data))
            run.emit(Progress(STAGE, len(found), shard.count, str(plan.targets[shard.number - 1])))
        run.emit(StageFinished(STAGE, time.perf_counter() - start, f"{len(found)} targets on Ray"))
        whole = _joined([(name, found[number]) for number, (_, name) in enumerate(bench.named(plan.targets), start=1)])
        gate.check(plan.gates, sorted({timing.batch for timing in whole.timings}), len(targets))
        judged = gate.judged(whole, plan.gates, cpu_counts=plan.speed.device == "cpu")
        return bench.written(run, judged, allow_inconclusive=plan.allow_inconclusive)


def _timed(plan: BenchPlan, here: Path, shard: Shard) -> bytes:
    """Time one target on a worker, and return its benchmark as JSON."""
    if here.is_dir():
        os.chdir(here)
    target = plan.targets[shard.number - 1]
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        report, stopped = bench.bench(replace(plan, targets=(target,), run_dir=Path(folder)))
    if stopped is not None:
        raise stopped
    return json.dumps(encode(report.benchmark)).encode()


def _joined(parts: Sequence[tuple[str, Benchmark]]) -> Benchmark:
    """Return one benchmark of single targets, each with its name; the timings by batch size, then by target."""
    timings = [replace(timing, target=name) for name, part in parts for timing in part.timings]
    return Benchmark(
        targets=tuple(replace(target, name=name) for name, part in parts for target in part.targets),
        timings=tuple(sorted(timings, key=lambda timing: timing.batch)),
        complete=all(part.complete for _, part in parts),
    )


def _work(kind: str, plan: Plan, here: Path, shard: Shard) -> bytes:
    """Run a shard of a command on a worker, and return the file of its partial result."""
    if here.is_dir():
        os.chdir(here)  # a data set may be a function of a module there
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        return _shard(kind, plan, Path(folder), shard).read_bytes()


def _shard(kind: str, plan: Plan, folder: Path, shard: Shard) -> Path:
    if isinstance(plan, ConvertPlan):
        run = sensitivity.sensitivity_shard if kind == sensitivity.KIND else calibrate.calibrate_shard
        return run(replace(plan, run_dir=folder), shard)
    if isinstance(plan, ComparePlan):
        return compare.compare_shard(replace(plan, run_dir=folder), shard)
    return predict.predict(replace(plan, out=folder / plan.out.name, shard=shard)).out


def _everywhere(plan: Plan) -> Plan:
    """Return the plan with absolute paths."""
    if isinstance(plan, ConvertPlan):
        assert plan.calib is not None
        data = plan.data and _data(plan.data)
        return replace(plan, source=_absolute(plan.source), calib=_data(plan.calib), data=data)
    if isinstance(plan, ComparePlan):
        candidates = tuple(map(_absolute, plan.candidates))
        return replace(plan, baseline=_absolute(plan.baseline), candidates=candidates, data=_data(plan.data))
    return replace(plan, run=_absolute(plan.run), out=_absolute(plan.out), data=_data(plan.data))


def _data(data: DataPlan) -> DataPlan:
    if not isinstance(data.source, str):
        raise UsageError("Python objects cannot be divided among workers", fix="Give a path or package.module:function")
    source = str(_absolute(Path(data.source))) if Path(data.source).exists() else data.source
    recipe = str(_absolute(Path(data.recipe))) if data.recipe and Path(data.recipe).exists() else data.recipe
    classes, labels = (path and _absolute(path) for path in (data.classes, data.labels))
    return replace(data, source=source, recipe=recipe, classes=classes, labels=labels)


def _absolute(path: Path) -> Path:
    return path.absolute() if path.exists() or path.suffix else path


def _kind(plan: Plan) -> str:
    if isinstance(plan, PredictPlan):
        return predict.KIND
    return calibrate.KIND if isinstance(plan, ConvertPlan) else compare.KIND


def _folder(plan: ConvertPlan | ComparePlan) -> Path:
    from trtopt.rundir import claimed

    folder = claimed(plan.run_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
