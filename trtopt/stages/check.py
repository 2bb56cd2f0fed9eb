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
    support = _support(run, model, plan)
    if support is not None and support.rejections:
        raise BuildError(support.what, why=support.why, fix=support.fix)


def hint_at_operators(run: Run, model: OnnxModel, plan: BuildPlan, title: str) -> None:
    """Warn of nodes that the TensorRT of this machine does not support: that of a platform, `title`, may not either."""
    support = _support(run, model, plan)
    if support is not None and support.rejections:
        run.warn(f"{support.by} here: {support.what} ({support.why}). {title} may not support this either")


def _support(run: Run, model: OnnxModel, plan: BuildPlan) -> Support | None:
    """Return the nodes that the backend does not support; None if it does not work here, or has no parser."""
    compiling = compiler(plan.backend)
    if compiling is None:
        return None

    def make(_: Path) -> Support:
        return compiling.check(model, plan, emit=run.emit)

    try:
        key = {"model": model.digest, **compiling.key(plan)}
        return run.store.stage("check", key, Support, make, _support_line)
    except EnvironmentUnableError:  # such as TensorRT on a machine without a GPU: `build` will say so
        return None


def _support_line(support: Support) -> str:
    unsupported = len(support.rejections)
    if not unsupported:
        return f"all operators are supported by {support.by}"
    return f"{unsupported} {'node is' if unsupported == 1 else 'nodes are'} not supported by {support.by}"
