"""The command `trtopt tune`: a conversion in which a search decides what is quantized.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from trtopt.commands.convert import convert
from trtopt.errors import ModelError, TrtoptError, UsageError
from trtopt.events import Emit, silent
from trtopt.export import source
from trtopt.plan import ConvertPlan
from trtopt.precision import precision
from trtopt.stages import export as exporting
from trtopt.stages.repair import is_quantized
from trtopt.stages.timing import check_timing
from trtopt.tune.costs import ENGINE, check_speed
from trtopt.types import Report


def tune(plan: ConvertPlan, emit: Emit = silent) -> tuple[Report, TrtoptError | None]:
    """Convert a model with the cheapest mixed precision that passes the gates. Returns what `convert` returns.

    Raises:
        TrtoptError: as in `convert`.
    """
    check(plan)
    return convert(plan, emit)


def check(plan: ConvertPlan) -> None:
    """Refuse a plan without a search that can be made.

    Raises:
        EnvironmentUnableError: the speed can only be measured on a GPU.
        UsageError: the plan has no samples to search on, or its precision no scales.
        ModelError: the model is quantized already.
    """
    assert plan.tuning is not None
    check_speed(plan.tuning.speed)
    if plan.tuning.speed == ENGINE:
        check_timing(plan.build, "--speed engine")
    if not precision(plan.precision).FORMAT.scaled:
        raise UsageError(f"--precision {plan.precision} leaves nothing to choose", fix="Choose int8 or fp8")
    if plan.data is None:
        raise UsageError(
            "tune needs samples to search and to judge on",
            why="the samples of --calib are no evidence for unseen data",
            fix="Add --data DATA",
        )
    ready = exporting.ready(source.identify(str(plan.source)), plan.export)
    if ready is not None and is_quantized(ready):
        raise ModelError(
            f"{plan.source} is quantized already", why="its scales are not trtopt's", fix="Give the FP32 model"
        )
