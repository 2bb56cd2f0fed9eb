"""`trtopt calibrate`: only the first half of a conversion, up to the calibration table.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from trtopt import stages
from trtopt.commands import checks
from trtopt.data.dataset import Dataset
from trtopt.events import Emit, silent
from trtopt.plan import ConvertPlan
from trtopt.run import Run, environment, open_run
from trtopt.shapes import profile
from trtopt.stages import export as exporting
from trtopt.stages import tables
from trtopt.types import (
    CalibrationTable,
    OnnxModel,
    ShapeRange,
)


def calibrate(plan: ConvertPlan, emit: Emit = silent) -> CalibrationTable:
    """Run `convert` up to calibration: write a calibration table to `plan.run_dir`, and return it.

    Raises:
        TrtoptError: as in `convert`.
    """
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
        stages.tell(run.emit, calib)
        model, table = calibrated(run, plan, source, ranges, calib)
        assert table is not None
        tables.drop_other_graph(run.store, model, table)
        if not run.store.holds("precision"):
            run.forget()
        run.store.describe(environment())
    return table


def calibrated(
    run: Run,
    plan: ConvertPlan,
    source: OnnxModel,
    ranges: tuple[ShapeRange, ...],
    calib: Dataset | None,
) -> tuple[OnnxModel, CalibrationTable | None]:
    """Prepare the graph; if the precision needs a table, also equalize and calibrate."""
    from trtopt.precision import precision

    kind = precision(plan.precision)
    table = tables.read(run, plan, calib) if kind.FORMAT.scaled else None
    model = prepared(run, plan, source, ranges)
    if not kind.FORMAT.scaled:
        return model, None
    if calib is not None and (plan.equalization if table is None else tables.of_equalized(table)):
        model = stages.equalize(run, model, calib, table.precision if table else plan.precision)
    if table is not None:
        tables.follow(run, plan, model, table)
    elif calib is not None:
        if remark := checks.few(calib):
            run.warn(remark)
        table = stages.calibrate(run, model, calib, plan.method, plan.precision, plan.only)
    return model, table


def prepared(run: Run, plan: ConvertPlan, source: OnnxModel, ranges: tuple[ShapeRange, ...]) -> OnnxModel:
    """Prepare the graph, and check that the backend supports its operators."""
    from trtopt.graph.file import load_ir
    from trtopt.precision import precision
    from trtopt.precision.passes.wanted import resolve

    kind = precision(plan.precision)
    opset = max(kind.FORMAT.opset, precision(plan.rest).FORMAT.opset) if kind.FORMAT.scaled else kind.FORMAT.opset
    model = stages.prepare(run, source, ranges, opset)
    if plan.keep or plan.only:  # a misspelt node must fail here, not after an hour of calibration
        resolve(load_ir(model.path), plan.keep, plan.only)
    stages.check_operators(run, model, plan.build)
    return model
