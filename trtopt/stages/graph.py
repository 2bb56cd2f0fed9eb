"""The stages that rewrite the graph: prepare it, ask TensorRT about its operators, set its precision.

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
    """FP32 ONNX as given -> FP32 ONNX, simplified, at a sufficient opset (`fp32.onnx`)."""

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
    """Ask the real parser, before any calibration, whether it takes every node. Says nothing where there is none.

    Raises:
        BuildError: it refuses some; the first is named.
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
    found = context.store.stage("check", key, Support, make, lambda made: _support_line(made, trt.name))
    if found.rejections:
        from trtopt.engine.refusal import error

        raise error(model.path, found.rejections)


def set_precision(
    context: Context, model: OnnxModel, target: Target, table: CalibrationTable | None, seen: Observation | None
) -> TypedModel:
    """FP32 ONNX (+ table, + what was seen) -> an ONNX graph that carries its precision in itself (`typed.onnx`)."""

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

    key = {
        "model": model.digest,
        "target": asdict(target),
        "table": dict(sorted(table.scales.items())) if table else None,
        "seen": [dict(sorted(seen.ranges.items())), dict(sorted(seen.sizes.items())), seen.digest, seen.correction]
        if seen
        else None,
        **versions("onnx", "onnx-ir"),
    }
    return context.store.stage("precision", key, TypedModel, make, _count_line)


def _read_means(seen: Observation) -> tuple[Means, Means]:
    """What biases are corrected with: the means of tensors, and of what rounding adds to them."""
    import numpy as np

    if not seen.correction:
        return {}, {}
    with np.load(seen.means, allow_pickle=False) as archive:
        names = [(str(i), str(name)) for i, name in enumerate(archive["names"])]
        means = {name: archive[key] for key, name in names}
        if seen.correction == "weights":
            return means, {}
        return means, {name: archive[f"{key} rounding"] for key, name in names if f"{key} rounding" in archive}


def _support_line(support: Support, name: str) -> str:
    if not support.rejections:
        return f"{name} takes every operator"
    return f"{name} refuses {len(support.rejections)} nodes"


def _count_line(typed: TypedModel) -> str:
    return ", ".join(f"{count} nodes {name}" for name, count in sorted(typed.counts().items()))
