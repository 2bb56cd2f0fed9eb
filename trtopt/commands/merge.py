"""The command `trtopt merge`: the result of the whole, from the partial results of all shards.

Touches: the output, or the run directory; reads the model and the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from trtopt.codec import decode
from trtopt.commands import calibrate, compare, predict, sensitivity
from trtopt.errors import UsageError
from trtopt.events import Emit, silent
from trtopt.plan import ComparePlan, ConvertPlan
from trtopt.shards.partial import Partial, read_whole
from trtopt.types import CalibrationTable, Predictions, Report

Merged = CalibrationTable | Report | Predictions
_Plan = TypeVar("_Plan", ConvertPlan, ComparePlan)


def merge(paths: Sequence[Path], out: Path | None = None, emit: Emit = silent) -> tuple[Merged, Path | None]:
    """Return the table, the report or the rows of the whole, and its run directory (None for rows).

    Args:
        paths: the partial results of all shards, in any order.
        out: the run directory, or the file of the rows; by default, what the shards were asked for.
        emit: receives events.

    Raises:
        UsageError: the files do not belong together, one is missing, or the model or the data are others here.
        TrtoptError: as the command that wrote the shards.
    """
    partials = read_whole(paths)
    kind = partials[0].header.kind
    if kind == predict.KIND:
        return predict.merge(partials, out, emit), None
    if kind == calibrate.KIND:
        plan = _plan(ConvertPlan, partials[0], out)
        return calibrate.calibrate(plan, emit, partials), _folder(plan)
    if kind == sensitivity.KIND:
        plan = _plan(ConvertPlan, partials[0], out)
        return sensitivity.sensitivity(plan, emit, partials), _folder(plan)
    if kind == compare.KIND:
        plan_of = _plan(ComparePlan, partials[0], out)
        return compare.compare(plan_of, emit, partials), _folder(plan_of)
    raise UsageError(f"{partials[0].path} is of an unknown command", why=repr(kind), fix="Use the trtopt that wrote it")


def _plan(cls: type[_Plan], partial: Partial, out: Path | None) -> _Plan:
    try:
        plan: Any = decode(cls, partial.header.plan)
    except ValueError as error:
        raise UsageError(
            f"{partial.path} was written by another version of trtopt", why=str(error), fix="Run the shards again"
        ) from error
    merged: _Plan = replace(plan, run_dir=out) if out else plan
    return merged


def _folder(plan: ConvertPlan | ComparePlan) -> Path:
    from trtopt.rundir import claimed

    return claimed(plan.run_dir)
