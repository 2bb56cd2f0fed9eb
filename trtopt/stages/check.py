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

    The stage is omitted if TensorRT is not installed, does not work on this machine, or is not the backend.

    Raises:
        BuildError: some nodes are not supported; the message names the first.
    """
    if plan.backend != "tensorrt":
        return
    from trtopt.engine import tensorrt
    from trtopt.engine.trt import apart

    try:
        trt = tensorrt.find(plan.tensorrt)
    except EnvironmentUnableError:
        return

    def make(_: Path) -> Support:
        return apart.check(trt, model.path, context.emit)

    key = {"model": model.digest, "tensorrt": f"{trt.name} {trt.version}"}
    try:
        support = context.store.stage("check", key, Support, make, lambda support: _support_line(support, trt.name))
    except EnvironmentUnableError:  # TensorRT needs a GPU, and this machine has none: `build` will say so
        return
    if support.rejections:
        from trtopt.engine.trt.refusal import advised, error

        raise advised(error(model.path, support.rejections), model.path)


def _support_line(support: Support, name: str) -> str:
    unsupported = len(support.rejections)
    if not unsupported:
        return f"all operators are supported by {name}"
    return f"{unsupported} {'node is' if unsupported == 1 else 'nodes are'} not supported by {name}"
