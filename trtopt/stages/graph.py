"""The stages that work on the graph: prepare it, check its operators with TensorRT, set its precision.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.config import BuildPlan
from trtopt.errors import EnvironmentUnableError
from trtopt.stages.context import Context, Target, versions
from trtopt.types import CalibrationTable, Observation, OnnxModel, ShapeRange, Support, TypedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Means = dict[str, NDArray[np.float64]]


def prepare(context: Context, source: OnnxModel, ranges: Sequence[ShapeRange], min_opset: int) -> OnnxModel:
    """Return the simplified FP32 model at a sufficient opset (`fp32.onnx`).

    Args:
        context: the context of the stage.
        source: the FP32 model as exported or given.
        ranges: the shape ranges of its dynamic inputs.
        min_opset: the lowest opset that can express the requested precision.
    """

    def make(folder: Path) -> OnnxModel:
        from trtopt.export.prepare import prepare

        return prepare(source.path, folder, min_opset=min_opset, profile=ranges)

    key = {
        "source": source.digest,
        "profile": [asdict(entry) for entry in ranges],
        "opset": min_opset,
        **versions("onnx", "onnx-ir", "onnxscript", "onnxslim"),
    }
    return context.store.stage("prepare", key, OnnxModel, make, lambda model: "; ".join(model.notes))


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
        from trtopt.engine.refusal import error

        raise error(model.path, support.rejections)


def set_precision(
    context: Context, model: OnnxModel, target: Target, table: CalibrationTable | None, seen: Observation | None
) -> TypedModel:
    """Return the ONNX graph with its precision written into it, as Q/DQ nodes and casts (`typed.onnx`).

    Args:
        context: the context of the stage.
        model: the FP32 model, prepared and possibly equalized.
        target: the requested precision.
        table: the scales; None for a precision without scales.
        seen: statistics of the activations; None if there are no samples.
    """

    def make(folder: Path) -> TypedModel:
        from trtopt.export.onnx import describe, load_ir
        from trtopt.export.prepare import check_types, save
        from trtopt.precision import Request, precision

        graph = load_ir(model.path)
        means, errors = _read_means(seen) if seen else ({}, {})
        request = Request(
            rest=target.rest,
            table=table,
            ranges=seen.ranges if seen else {},
            sizes=seen.sizes if seen else {},
            means=means,
            errors=errors,
        )
        decisions = precision(target.precision).apply(graph, request)
        path = folder / "typed.onnx"
        save(graph, path)
        check_types(path)
        return TypedModel(onnx=describe(path), precision=target.precision, rest=target.rest, decisions=decisions)

    statistics = None
    if seen is not None:
        statistics = [
            dict(sorted(seen.ranges.items())),
            dict(sorted(seen.sizes.items())),
            seen.digest,
            seen.correction,
        ]
    key = {
        "model": model.digest,
        "target": asdict(target),
        "table": dict(sorted(table.scales.items())) if table else None,
        "seen": statistics,
        **versions("onnx", "onnx-ir"),
    }
    return context.store.stage("precision", key, TypedModel, make, _count_line)


def _read_means(seen: Observation) -> tuple[Means, Means]:
    """Return the data for bias correction: by tensor, the means per channel and the mean rounding errors per channel.

    Either is empty if the correction does not use it.
    """
    import numpy as np

    if not seen.correction:
        return {}, {}
    means: Means = {}
    errors: Means = {}
    with np.load(seen.means, allow_pickle=False) as archive:
        for i, name in enumerate(archive["names"]):
            means[str(name)] = archive[str(i)]
            if seen.correction != "weights" and f"{i} rounding" in archive:
                errors[str(name)] = archive[f"{i} rounding"]
    return means, errors


def _support_line(support: Support, name: str) -> str:
    unsupported = len(support.rejections)
    if not unsupported:
        return f"all operators are supported by {name}"
    return f"{unsupported} {'node is' if unsupported == 1 else 'nodes are'} not supported by {name}"


def _count_line(typed: TypedModel) -> str:
    return ", ".join(f"{count} nodes in {name}" for name, count in sorted(typed.counts().items()))
