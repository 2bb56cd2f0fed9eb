"""The stage `check`: the backend is asked about every operator before any calibration.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from pathlib import Path

from trtopt.engine import compiler
from trtopt.errors import BuildError, EnvironmentUnableError
from trtopt.plan import BuildPlan
from trtopt.run import Run
from trtopt.types import OnnxModel, Support


def check_operators(run: Run, model: OnnxModel, plan: BuildPlan) -> None:
    """Check, before calibration, that the backend supports every node.

    The stage is omitted if the backend does not work on this machine, or if its engine is the graph itself.

    Raises:
        BuildError: some nodes are not supported; the message names the first.
    """
    compiling = compiler(plan.backend)
    if compiling is None:
        return

    def make(_: Path) -> Support:
        return compiling.check(model, plan, emit=run.emit)

    try:
        key = {"model": model.digest, **compiling.key(plan)}
        support = run.store.stage("check", key, Support, make, _support_line)
    except EnvironmentUnableError:  # such as TensorRT on a machine without a GPU: `build` will say so
        return
    if support.rejections:
        raise BuildError(support.what, why=support.why, fix=support.fix)


def _support_line(support: Support) -> str:
    unsupported = len(support.rejections)
    if not unsupported:
        return f"all operators are supported by {support.by}"
    return f"{unsupported} {'node is' if unsupported == 1 else 'nodes are'} not supported by {support.by}"
