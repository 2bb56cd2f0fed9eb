"""`trtopt calibrate`: only the first half of a conversion, up to the calibration table.

Touches: the run directory, through the store.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trtopt import stages
from trtopt.codec import encode
from trtopt.commands import checks
from trtopt.data.dataset import Dataset
from trtopt.engine import missing_operators
from trtopt.events import Emit, StageCached, StageFinished, StageStarted, silent
from trtopt.plan import ConvertPlan
from trtopt.run import Run, environment, open_run
from trtopt.rundir import claimed
from trtopt.shapes import profile
from trtopt.shards.partial import Header, Partial, is_there, partial_name, write_partial
from trtopt.shards.shard import Shard
from trtopt.stages import export as exporting
from trtopt.stages import tables
from trtopt.types import CalibrationTable, OnnxModel, ShapeRange
from trtopt.wording import counted
from trtopt.writing import writing

KIND = "calibrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A calibration that is about to begin: the run, the FP32 model, its profile, and the samples."""

    run: Run
    source: OnnxModel
    ranges: tuple[ShapeRange, ...]
    calib: Dataset


def calibrate(plan: ConvertPlan, emit: Emit = silent, partials: Sequence[Partial] = ()) -> CalibrationTable:
    """Run `convert` up to calibration: write a calibration table to `plan.run_dir`, and return it.

    With the partial results of all shards, no sample is counted again.

    Raises:
        TrtoptError: as in `convert`.
    """
    with _begun(plan, emit) as begun:
        run = begun.run
        if not partials:
            stages.read(run, begun.calib, None)
        model, table = calibrated(run, plan, begun.source, begun.ranges, begun.calib, partials)
        assert table is not None
        tables.drop_other_graph(run.store, model, table)
        if not run.store.holds("precision"):
            run.forget()
        run.store.describe(environment())
    return table


def calibrate_shard(plan: ConvertPlan, shard: Shard, emit: Emit = silent) -> Path:
    """Count one shard of the samples, and return the file of the partial result, in the run directory of the whole.

    A partial result that is there already, of the same shard, is not made again.

    Raises:
        TrtoptError: as in `convert`.
    """
    from trtopt.calibrate.counted import write
    from trtopt.stages.calibrate import COUNTS, Scales, count, key_of

    folder = claimed(plan.run_dir)
    path = folder / f"{KIND}.{partial_name(shard)}"
    own = replace(plan, run_dir=folder / f"shard-{shard.number}-of-{shard.count}")
    with _begun(own, emit) as begun:
        run, start = begun.run, time.perf_counter()
        model = equalized(run, plan, prepared(run, plan, begun.source, begun.ranges), begun.calib)
        scales = Scales(method=plan.method, precision=plan.precision, only=plan.only)
        key = key_of(run, model, begun.calib, scales)
        header = Header(kind=KIND, shard=shard, key=key, plan=encode(plan))
        if is_there(path, header):
            emit(StageCached(KIND, f"shard {shard}, {path}"))
            return path
        emit(StageStarted(KIND))
        partial = count(run, model, begun.calib, scales, shard)
        with writing(folder):
            write_partial(path, header, [(COUNTS, lambda file: write(partial, file))])
        samples = len(shard.of(len(begun.calib)))
        emit(StageFinished(KIND, time.perf_counter() - start, f"shard {shard}: {counted(samples, 'sample')}, {path}"))
    return path


@contextmanager
def _begun(plan: ConvertPlan, emit: Emit) -> Iterator[_Begun]:
    """Check the plan, open the run directory, and bring the model and the samples."""
    from trtopt.export.source import identify
    from trtopt.graph.unread import unread

    checks.names(plan)
    given = identify(str(plan.source))
    checks.calibrates(plan)
    checks.data_flags(plan, needs_table=True)
    with open_run(plan.run_dir, emit, plan.device, plan.cache) as run:
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.calib)
        source = exporting.ready(given, plan.export) or exporting.bring(run, given, wanted)[0]
        source = stages.widen(run, source)
        ranges, _ = profile(
            source.inputs,
            plan.shapes,
            lambda: stages.sizes((plan.calib,), source),
            lambda: unread(source.path),
        )
        calib = stages.open_samples(plan.calib, source, ranges)
        assert calib is not None
        stages.tell(run.emit, calib)
        yield _Begun(run=run, source=source, ranges=ranges, calib=calib)


def calibrated(
    run: Run,
    plan: ConvertPlan,
    source: OnnxModel,
    ranges: tuple[ShapeRange, ...],
    calib: Dataset | None,
    partials: Sequence[Partial] = (),
) -> tuple[OnnxModel, CalibrationTable | None]:
    """Prepare the graph; if the precision needs a table, also equalize and calibrate."""
    from trtopt.precision import precision
    from trtopt.stages.calibrate import Scales

    kind = precision(plan.precision)
    table = tables.read(run, plan, calib) if kind.FORMAT.scaled else None
    model = prepared(run, plan, source, ranges)
    if not kind.FORMAT.scaled:
        return model, None
    model = equalized(run, plan, model, calib, table)
    if table is not None:
        tables.follow(run, plan, model, table)
    elif calib is not None:
        if remark := checks.few(calib):
            run.warn(remark)
        scales = Scales(method=plan.method, precision=plan.precision, plan=plan.build, only=plan.only)
        table = stages.calibrate(run, model, calib, scales, partials)
    return model, table


def equalized(
    run: Run, plan: ConvertPlan, model: OnnxModel, calib: Dataset | None, table: CalibrationTable | None = None
) -> OnnxModel:
    """Return the model, equalized if the plan, or the table that it gives, asks for it."""
    if calib is not None and (plan.equalization if table is None else tables.of_equalized(table)):
        return stages.equalize(run, model, calib, table.precision if table else plan.precision)
    return model


def prepared(run: Run, plan: ConvertPlan, source: OnnxModel, ranges: tuple[ShapeRange, ...]) -> OnnxModel:
    """Prepare the graph, and check that the backend supports its operators."""
    from trtopt.graph.file import load_ir
    from trtopt.precision import lowest_opset
    from trtopt.precision.passes.wanted import resolve

    model = stages.prepare(run, source, ranges, lowest_opset(plan.precision, plan.rest), _lacks(plan))
    if plan.keep or plan.only:  # a misspelt node must fail here, not after an hour of calibration
        resolve(load_ir(model.path), plan.keep, plan.only)
    if plan.target is None:
        stages.check_operators(run, model, plan.build)
    else:
        stages.hint_at_operators(run, model, plan.build, plan.target.title)
    return model


def _lacks(plan: ConvertPlan) -> Collection[str]:
    """Return the operators that the parser of the target, or of this machine, lacks."""
    if plan.target is not None:
        return plan.target.can.lacks
    return missing_operators(plan.build)
