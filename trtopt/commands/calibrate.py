"""`trtopt calibrate`: only the first half of a conversion, up to the calibration table.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from trtopt import stages
from trtopt.commands import checks
from trtopt.data.dataset import Dataset
from trtopt.events import Emit, Warned, silent
from trtopt.plan import ConvertPlan
from trtopt.rehearsal import open_for
from trtopt.shapes import profile
from trtopt.stages import export as exporting
from trtopt.stages import report as reporting
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
    with open_for(plan.run_dir, emit, plan.cache) as store:
        context = stages.Context(store=store, emit=emit, device=plan.device)
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.calib)
        source = exporting.ready(given, plan.export) or exporting.bring(context, given, wanted)[0]
        source = stages.widen(context, source)
        ranges, _ = profile(
            source.inputs,
            plan.shapes,
            lambda: stages.sizes((plan.calib,), source),
            lambda: unread(source.path),
        )
        calib = stages.open_samples(plan.calib, source, ranges)
        stages.tell(context.emit, calib)
        model, table = calibrated(context, plan, source, ranges, calib)
        assert table is not None
        tables.drop_other_graph(store, model, table)
        if not store.holds("precision"):
            reporting.forget(store)
        store.describe(stages.environment())
    return table


def calibrated(
    context: stages.Context,
    plan: ConvertPlan,
    source: OnnxModel,
    ranges: tuple[ShapeRange, ...],
    calib: Dataset | None,
) -> tuple[OnnxModel, CalibrationTable | None]:
    """Prepare the graph; if the precision needs a table, also equalize and calibrate."""
    from trtopt.precision import precision

    kind = precision(plan.precision)
    table = tables.read(context, plan, calib) if kind.NEEDS_TABLE else None
    model = prepared(context, plan, source, ranges)
    if not kind.NEEDS_TABLE:
        return model, None
    if calib is not None and (plan.equalization if table is None else tables.of_equalized(table)):
        model = stages.equalize(context, model, calib, table.precision if table else plan.precision)
    if table is not None:
        tables.follow(context, plan, model, table)
    elif calib is not None:
        if remark := checks.few(calib):
            context.emit(Warned(remark))
        table = stages.calibrate(context, model, calib, plan.method, plan.precision)
    return model, table


def prepared(
    context: stages.Context, plan: ConvertPlan, source: OnnxModel, ranges: tuple[ShapeRange, ...]
) -> OnnxModel:
    """Prepare the graph, and check that TensorRT supports its operators."""
    from trtopt.graph.file import load_ir
    from trtopt.precision import precision
    from trtopt.precision.passes.wanted import resolve

    kind = precision(plan.precision)
    opset = max(kind.OPSET, precision(plan.rest).OPSET) if kind.NEEDS_TABLE else kind.OPSET
    model = stages.prepare(context, source, ranges, opset)
    if plan.keep:  # a misspelt node must fail here, not after an hour of calibration
        resolve(load_ir(model.path), plan.keep)
    stages.check_operators(context, model, plan.build)
    return model
