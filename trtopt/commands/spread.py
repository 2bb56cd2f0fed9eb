"""`--ray`: a command on all workers of a Ray cluster. It is `--shard` on each of them, and then `trtopt merge`.

Touches: the cluster; as the command itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from trtopt.commands import calibrate, compare, predict
from trtopt.commands.merge import Merged, merge
from trtopt.errors import UsageError
from trtopt.events import Emit, Progress, StageFinished, StageStarted, silent
from trtopt.plan import ComparePlan, ConvertPlan, DataPlan, PredictPlan
from trtopt.shards.cluster import Cluster, each_shard
from trtopt.shards.partial import partial_name
from trtopt.shards.shard import Shard

Plan = ConvertPlan | ComparePlan | PredictPlan
STAGE = "shards"


def spread(plan: Plan, cluster: Cluster, emit: Emit = silent) -> Merged:
    """Run a command on all workers of a cluster, and return its table, report or rows.

    The partial results are kept beside the output if a shard fails, and removed otherwise.

    Raises:
        UsageError: the data are Python objects.
        DataError: a shard failed; the message names it.
        TrtoptError: as the command.
    """
    import time

    plan = _everywhere(plan)
    out = plan.out if isinstance(plan, PredictPlan) else _folder(plan)
    start, paths = time.perf_counter(), []
    emit(StageStarted(STAGE))
    for shard, data in each_shard(cluster, partial(_work, plan, Path.cwd())):
        out.parent.mkdir(parents=True, exist_ok=True)
        name = partial_name(shard)
        path = out.with_name(f"{out.name}.{name}") if isinstance(plan, PredictPlan) else out / f"{_kind(plan)}.{name}"
        path.write_bytes(data)
        paths.append(path)
        emit(Progress(STAGE, len(paths), shard.count, f"shard {shard}"))
    emit(StageFinished(STAGE, time.perf_counter() - start, f"{len(paths)} shards on Ray"))
    result, _ = merge(paths, out, emit)
    for path in paths:
        path.unlink(missing_ok=True)
    return result


def _work(plan: Plan, here: Path, shard: Shard) -> bytes:
    """Run a shard of a command on a worker, and return the file of its partial result."""
    if here.is_dir():
        os.chdir(here)  # a data set may be a function of a module there
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        return _shard(plan, Path(folder), shard)().read_bytes()


def _shard(plan: Plan, folder: Path, shard: Shard) -> Callable[[], Path]:
    if isinstance(plan, ConvertPlan):
        return partial(calibrate.calibrate_shard, replace(plan, run_dir=folder), shard)
    if isinstance(plan, ComparePlan):
        return partial(compare.compare_shard, replace(plan, run_dir=folder), shard)
    own = replace(plan, out=folder / plan.out.name, shard=shard)
    return lambda: predict.predict(own).out


def _everywhere(plan: Plan) -> Plan:
    """Return the plan with absolute paths."""
    if isinstance(plan, ConvertPlan):
        assert plan.calib is not None
        return replace(plan, source=_absolute(plan.source), calib=_data(plan.calib))
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


def _kind(plan: ConvertPlan | ComparePlan) -> str:
    return calibrate.KIND if isinstance(plan, ConvertPlan) else compare.KIND


def _folder(plan: ConvertPlan | ComparePlan) -> Path:
    from trtopt.rundir import claimed

    folder = claimed(plan.run_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
