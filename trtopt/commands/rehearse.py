"""`--dry-run`: which stages a run would run, and which results are cached.

The plan is run as usual, up to the first stage whose result is not cached: flags, files, gates and shapes are checked
on the way. What follows that stage runs, unless its inputs turn out to be those of an earlier run.

Touches: reads the run directory, the model and the samples; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtopt.events import Emit, Event, StageCached, Warned
from trtopt.plan import ComparePlan, ConvertPlan, ExportOnlyPlan
from trtopt.rehearsal import WouldRunError
from trtopt.rundir import found

Plan = ConvertPlan | ComparePlan | ExportOnlyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """Stages of a run in `run_dir`: those that are `cached`, each with its summary, and those that would run."""

    run_dir: Path
    cached: tuple[tuple[str, str], ...]
    would_run: tuple[str, ...]


def rehearse(plan: Plan, run: Callable[[Emit], object], emit: Emit, *, last: str = "") -> Rehearsed:
    """Return what `run`, whose plan has the cache `show`, would run; `last` is its last stage if it ends early.

    Raises:
        TrtoptError: the plan cannot be run.
    """
    cached: list[tuple[str, str]] = []

    def record(event: Event) -> None:
        if isinstance(event, StageCached):
            cached.append((event.stage, event.summary))
        elif isinstance(event, Warned):
            emit(event)

    would_run: tuple[str, ...] = ()
    try:
        run(record)
    except WouldRunError as first:
        order = _stages(plan)
        if last and last not in order:  # a stage that follows the statistics, and that no conversion has
            order = [*order[: order.index("observe") + 1], last]
        start = order.index(first.stage) if first.stage in order else len(order)
        following = order[start + 1 :] if start < len(order) else _without_export(order)
        if last in following:
            following = following[: following.index(last) + 1]
        would_run = (first.stage,) if first.stage == last else (first.stage, *following)
    return Rehearsed(run_dir=found(plan.run_dir), cached=tuple(cached), would_run=would_run)


def _stages(plan: Plan) -> list[str]:
    """Return the stages of a plan in order, without those that only the model decides on."""
    if isinstance(plan, ExportOnlyPlan):
        return ["export", "parity"]
    if isinstance(plan, ComparePlan):
        names = [f" {path}" for path in plan.candidates] if len(plan.candidates) > 1 else [""]
        layers = ["layers"] if plan.layers else []
        return [f"{stage}{name}" for name in names for stage in ("compare", "gate")] + layers
    from trtopt.engine import compiler
    from trtopt.precision import precision

    builds = compiler(plan.build.backend) is not None
    here = plan.target is None
    scales = precision(plan.precision).FORMAT.scaled
    applies = {
        "check": builds,
        "build": builds and here,
        "target": not here,
        "equalize": scales and plan.equalization and plan.table is None,
        "calibrate": scales and plan.table is None,
        "observe": plan.precision != "fp32" and (plan.data is not None or plan.calib is not None),
        "timing": plan.if_faster,
        "tune": plan.tuning is not None,
        "guard": scales and plan.guard and plan.tuning is None and plan.calib is not None,
        "compare": plan.compare,
        "gate": plan.compare,
    }
    before = ("export", "parity", "prepare", "check", "equalize", "calibrate", "observe", "timing")
    order = (*before, "tune", "guard", "precision", "build", "target", "compare", "gate")
    return [name for name in order if applies.get(name, True)]


def _without_export(order: list[str]) -> list[str]:
    """Return what follows a stage that only some models need: it comes after the export."""
    return [name for name in order if name not in ("export", "parity")]
