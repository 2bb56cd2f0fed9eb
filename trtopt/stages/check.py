"""The stage `check`: TensorRT's parser is asked about every operator before any calibration.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from pathlib import Path

from trtopt.errors import EnvironmentUnableError
from trtopt.plan import BuildPlan
from trtopt.stages.context import Context
from trtopt.types import OnnxModel, Support


def check_operators(context: Context, model: OnnxModel, plan: BuildPlan) -> None:
    """Check with TensorRT's parser, before calibration, that it supports every node.

    The stage is omitted if TensorRT is not installed or not the backend.

    Raises:
        BuildError: some nodes are not supported; the message names the first.
    """
    if plan.backend != "tensorrt":
        return
    from trtopt.engine import tensorrt

    try:
        trt = tensorrt.find(plan.tensorrt)
    except EnvironmentUnableError:
        return

    def make(_: Path) -> Support:
        return Support(rejections=tensorrt.check(trt, model.path))

    key = {"model": model.digest, "tensorrt": f"{trt.name} {trt.version}"}
    support = context.store.stage("check", key, Support, make, lambda support: _support_line(support, trt.name))
    if support.rejections:
        from trtopt.engine.trt.refusal import advised, error

        raise advised(error(model.path, support.rejections), model.path)


def _support_line(support: Support, name: str) -> str:
    unsupported = len(support.rejections)
    if not unsupported:
        return f"all operators are supported by {name}"
    return f"{unsupported} {'node is' if unsupported == 1 else 'nodes are'} not supported by {name}"
