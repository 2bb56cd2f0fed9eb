"""A calibration table from `--calib-table`, used instead of calibrating: check that it fits, and warn where needed.

Touches: reads the table, and the calibration samples to find overlap with the evaluation samples.
"""

from __future__ import annotations

from dataclasses import replace

from trtopt.data.dataset import Dataset
from trtopt.errors import UsageError
from trtopt.events import Warned
from trtopt.plan import ConvertPlan
from trtopt.run import Run
from trtopt.store import RunStore
from trtopt.types import EQUALIZED, CalibrationTable, OnnxModel
from trtopt.wording import counted


def read(run: Run, plan: ConvertPlan, calib: Dataset | None) -> CalibrationTable | None:
    """Return the table that the plan names, or None if it names none.

    If other samples than those of the table correct the biases, their fingerprints are added to the table's.

    Raises:
        TableError: the file is not a table, or damaged.
        UsageError: the table was made for an equalized network that cannot be reproduced from the plan.
    """
    if plan.table is None:
        return None
    from trtopt.calibrate import AUTO
    from trtopt.calibrate.table import read_table

    table = read_table(plan.table)
    _check_equalized(table, plan, calib)
    if plan.method != AUTO:
        run.warn(f"--method {plan.method} is ignored: scales are read from {plan.table}")
    if table.precision != plan.precision:
        run.emit(
            Warned(f"{plan.table} was calibrated for {table.precision}: it was not evaluated for {plan.precision}")
        )
    # Fingerprints are needed only to find overlap between the evaluation samples and those that correct biases.
    if calib is None or plan.data is None or not plan.bias_correction:
        return table
    # The table already holds the fingerprints of its own samples.
    if calib.digest == table.data_digest:
        return table
    return replace(table, fingerprints=tuple(sorted(_fingerprints(calib).union(table.fingerprints))))


def of_equalized(table: CalibrationTable) -> bool:
    """Return whether the table was made for an equalized network, judged by its tensor names."""
    return any(name.endswith(EQUALIZED) for name in table.scales)


def follow(run: Run, plan: ConvertPlan, model: OnnxModel, table: CalibrationTable) -> None:
    """Check the table for this model, and record the stage `calibrate` as skipped.

    Results of an earlier `calibrate` are discarded, unless the table itself is in the run directory.

    Raises:
        TableError: the table was made for another model, or lacks a tensor.
    """
    from trtopt.calibrate.table import check_table
    from trtopt.graph.file import load_ir
    from trtopt.precision.passes.placement import place

    check_table(table, model, place(load_ir(model.path)).tensors())
    assert plan.table is not None
    if plan.table.resolve().parent != run.store.root.resolve():
        run.store.discard("calibrate")
    origin = f"{table.method}, {counted(table.samples, 'sample')}" if table.samples else table.method
    summary = f"{counted(len(table.scales), 'scale')} read from {plan.table} ({origin})"
    run.skip("calibrate", summary)


def drop_other_graph(store: RunStore, model: OnnxModel, table: CalibrationTable) -> None:
    """Delete a typed graph that was not made from this model and these scales, and its engine."""
    store.discard("precision", model=model.digest, table=dict(sorted(table.scales.items())))
    if not store.holds("precision"):
        store.discard("build")


def _check_equalized(table: CalibrationTable, plan: ConvertPlan, calib: Dataset | None) -> None:
    """Raise UsageError if the table was made for an equalized network that cannot be reproduced."""
    if not of_equalized(table):
        return
    what = f"{plan.table} was made for an equalized network"
    if not plan.equalization:
        raise UsageError(
            what,
            why="its scales do not fit the network without equalization",
            fix="Remove --no-equalization, or calibrate with it",
        )
    if not table.model_digest:
        raise UsageError(
            what,
            why="a TensorRT cache does not record how the network was equalized",
            fix="Give the calibration.json that was written with it, or calibrate with --no-equalization",
        )
    if calib is None or calib.digest != table.data_digest:
        raise UsageError(
            what,
            why="the samples of the table are needed to equalize the network again",
            fix="Give these samples with --calib, or calibrate with --no-equalization",
        )


def _fingerprints(dataset: Dataset) -> set[str]:
    """Return the fingerprints of all samples of a dataset."""
    from trtopt.data.overlap import fingerprinted

    fingerprints: dict[int, str] = {}
    # Loading a sample of this dataset records its fingerprint.
    recorded = fingerprinted(dataset, fingerprints)
    for index in range(len(dataset)):
        recorded.load(index)
    return set(fingerprints.values())
