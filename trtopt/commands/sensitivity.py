"""The command `trtopt sensitivity`: the first half of a conversion, and what quantizing each group costs in accuracy.

Touches: the run directory, through the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trtopt import __version__, stages
from trtopt.codec import encode
from trtopt.commands import checks
from trtopt.commands.calibrate import calibrated
from trtopt.data.dataset import Dataset
from trtopt.errors import ModelError
from trtopt.events import Emit, StageCached, StageFinished, StageStarted, silent
from trtopt.plan import ConvertPlan
from trtopt.run import Run, open_run
from trtopt.rundir import claimed
from trtopt.shapes import named, profile
from trtopt.shards.partial import Header, Partial, is_there, partial_name, write_partial
from trtopt.shards.shard import Shard
from trtopt.stages import export as exporting
from trtopt.stages.repair import is_quantized
from trtopt.stages.sensitivity import GROUPS, examined, merged
from trtopt.types import OnnxModel, Report, ShapeRange
from trtopt.writing import writing

KIND = "sensitivity"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """Measurements that are about to begin: the run, the FP32 model, its profile, and the samples."""

    run: Run
    source: OnnxModel
    ranges: tuple[ShapeRange, ...]
    calib: Dataset | None
    dataset: Dataset


def sensitivity(plan: ConvertPlan, emit: Emit = silent, partials: Sequence[Partial] = ()) -> Report:
    """Measure what quantizing each group of nodes costs in accuracy, and return the report.

    The samples of `plan.data` are run, or those of `plan.calib` without it. With the partial results of all shards,
    nothing is run again.

    Raises:
        TrtoptError: the input cannot be used, or a stage failed.
    """
    with _begun(plan, emit) as begun:
        run, dataset = begun.run, begun.dataset
        if partials:
            found = merged(run, partials, dataset, _inputs(begun, _target(plan, begun)))
        else:
            stages.read(run, begun.calib, dataset if plan.data else None)
            found = stages.sensitivity(run, _subject(plan, begun), dataset)
        return run.finish(
            Report(
                command="sensitivity",
                verdict="unchecked",
                model=str(plan.source),
                precision=plan.precision,
                sensitivity=found,
            )
        )


def sensitivity_shard(plan: ConvertPlan, shard: Shard, emit: Emit = silent) -> Path:
    """Measure one shard of the groups, and return the file of the partial result, in the run directory of the whole.

    A partial result that is there already, of the same shard, is not made again.

    Raises:
        TrtoptError: as `sensitivity`.
    """
    folder = claimed(plan.run_dir)
    path = folder / f"{KIND}.{partial_name(shard)}"
    own = replace(plan, run_dir=folder / f"shard-{shard.number}-of-{shard.count}")
    with _begun(own, emit) as begun:
        subject, start = _subject(plan, begun), time.perf_counter()
        key = {
            **_inputs(begun, subject.target),
            "prepared": subject.model.digest,
            "table": dict(sorted(subject.table.scales.items())),
            "statistics": [subject.seen.digest, subject.seen.correction],
        }
        header = Header(kind=KIND, shard=shard, key=key, plan=encode(plan))
        if is_there(path, header):
            emit(StageCached(KIND, f"shard {shard}, {path}"))
            return path
        emit(StageStarted(KIND))
        part = examined(begun.run, subject, begun.dataset, shard)
        text = json.dumps(encode(part)).encode()
        with writing(folder):
            write_partial(path, header, [(GROUPS, lambda file: file.write(text))])
        groups = len(part.estimates)
        emit(StageFinished(KIND, time.perf_counter() - start, f"shard {shard}: {groups} groups, {path}"))
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
        run.forget()
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data or plan.calib)
        source = exporting.ready(given, plan.export) or exporting.bring(run, given, wanted)[0]
        source = stages.widen(run, source)
        if is_quantized(source):
            raise ModelError(f"{plan.source} is quantized already", fix="Give the FP32 model")
        ranges, _ = profile(
            source.inputs,
            plan.shapes,
            lambda: stages.sizes((plan.data, plan.calib), source),
            lambda: unread(source.path),
        )
        data, calib = (stages.open_samples(each, source, ranges) for each in (plan.data, plan.calib))
        stages.tell(run.emit, calib, data)
        dataset = data or calib
        assert dataset is not None
        checks.within(dataset, source.inputs, [entry for entry in ranges if entry.name in named(plan.shapes)])
        yield _Begun(run=run, source=source, ranges=ranges, calib=calib, dataset=dataset)


def _subject(plan: ConvertPlan, begun: _Begun) -> stages.Subject:
    """Calibrate and observe, and return the network that is about to be quantized."""
    run, source = begun.run, begun.source
    model, table = calibrated(run, plan, source, begun.ranges, begun.calib)
    assert table is not None
    target = _target(plan, begun)
    seen = stages.observe(run, model, begun.calib or begun.dataset, target, table)
    run.shared.clear()
    return stages.Subject(baseline=source, model=model, target=target, table=table, seen=seen)


def _target(plan: ConvertPlan, begun: _Begun) -> stages.Target:
    return stages.Target(
        precision=plan.precision,
        rest=plan.rest,
        bias_correction=plan.bias_correction and begun.calib is not None,
        keep=plan.keep,
        only=plan.only,
    )


def _inputs(begun: _Begun, target: stages.Target) -> dict[str, Any]:
    """Return what is measured, as JSON values."""
    return {
        "trtopt": __version__,
        "model": begun.source.digest,
        "data": begun.dataset.digest,
        "calib": begun.calib.digest if begun.calib else "",
        "target": encode(asdict(target)),
        "device": begun.run.place.partition(":")[0],
    }
