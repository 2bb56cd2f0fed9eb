"""A calibration table that was given, in place of calibrating: whether it fits, and what is to be said of it.

Touches: reads the table, and the calibration samples to tell them from those of the evaluation.
"""

from __future__ import annotations

from dataclasses import replace

from trtopt.config import ConvertPlan
from trtopt.data.dataset import Dataset
from trtopt.errors import UsageError
from trtopt.events import Warned
from trtopt.stages.context import Context
from trtopt.store import RunStore
from trtopt.types import CalibrationTable, OnnxModel, StageOutcome


def read(context: Context, plan: ConvertPlan, calib: Dataset | None) -> CalibrationTable | None:
    """The table that the plan names, if any, with the fingerprints of the samples that correct biases beside its own.

    Raises:
        TableError: it is none, or damaged.
        UsageError: it is of an equalized network, which cannot be made again from what is given.
    """
    if plan.table is None:
        return None
    from trtopt.calibrate import AUTO
    from trtopt.calibrate.table import read_table

    table = read_table(plan.table)
    _check_equalized(table, plan, calib)
    if plan.method != AUTO:
        context.emit(Warned(f"--method {plan.method} is not followed: the scales are those of {plan.table}"))
    if table.precision != plan.precision:
        context.emit(Warned(f"{plan.table} is for {table.precision}: what suits {plan.precision} was not tried"))
    if calib is None or plan.data is None or not plan.bias_correction or calib.digest == table.data_digest:
        return table
    return replace(table, fingerprints=tuple(sorted(_fingerprints(calib).union(table.fingerprints))))


def of_equalized(table: CalibrationTable) -> bool:
    """Whether its tensors are those of an equalized network."""
    from trtopt.precision.equalize import SUFFIX

    return any(name.endswith(SUFFIX) for name in table.scales)


def follow(context: Context, plan: ConvertPlan, model: OnnxModel, table: CalibrationTable) -> None:
    """Take the table for this model, in place of the stage `calibrate`, of which nothing earlier may stay.

    Raises:
        TableError: it was made for another model, or lacks a tensor.
    """
    from trtopt.calibrate.table import check_table
    from trtopt.export.onnx import load_ir
    from trtopt.precision.placement import place

    check_table(table, model, place(load_ir(model.path)).tensors())
    assert plan.table is not None
    if plan.table.resolve().parent != context.store.root.resolve():
        context.store.discard("calibrate")
    summary = f"{len(table.scales)} scales of {plan.table}: {table.method}"
    summary += f" over {table.samples} samples" if table.samples else ""
    context.store.outcomes.append(StageOutcome(name="calibrate", status="skipped", seconds=0.0, summary=summary))


def drop_other_graph(store: RunStore, model: OnnxModel, table: CalibrationTable) -> None:
    """Delete a typed graph that is not of this model and these scales, with its engine."""
    store.discard("precision", model=model.digest, table=dict(sorted(table.scales.items())))
    if not store.holds("precision"):
        store.discard("build")


def _check_equalized(table: CalibrationTable, plan: ConvertPlan, calib: Dataset | None) -> None:
    if not of_equalized(table):
        return
    what = f"{plan.table} is of an equalized network"
    if not plan.equalization:
        raise UsageError(what, why="its scales fit no other", fix="Leave --no-equalization out, or calibrate with it")
    if not table.model_digest:
        raise UsageError(
            what,
            why="a TensorRT cache does not say how it was equalized",
            fix="Give the calibration.json that was written with it, or calibrate with --no-equalization",
        )
    if calib is None or calib.digest != table.data_digest:
        raise UsageError(
            what,
            why="equalizing it again takes the samples that it was made from",
            fix="Give --calib those samples, or calibrate with --no-equalization",
        )


def _fingerprints(dataset: Dataset) -> set[str]:
    from trtopt.data.overlap import fingerprinted

    seen: dict[int, str] = {}
    watched = fingerprinted(dataset, seen)
    for index in range(len(dataset)):
        watched.load(index)
    return set(seen.values())
