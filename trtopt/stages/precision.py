"""The stage `precision`: FP32 ONNX to the typed graph.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.requires import versions
from trtopt.run import Run
from trtopt.stages.target import Target
from trtopt.types import CalibrationTable, Observation, OnnxModel, TypedModel
from trtopt.wording import counted

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from trtopt.precision import Request

    Means = dict[tuple[str, int], NDArray[np.float64]]


def set_precision(
    run: Run, model: OnnxModel, target: Target, table: CalibrationTable | None, seen: Observation | None
) -> TypedModel:
    """Return the ONNX graph with its precision written into it, as Q/DQ nodes and casts (`typed.onnx`).

    Args:
        run: the run.
        model: the FP32 model, prepared and possibly equalized.
        target: the requested precision.
        table: the scales; None for a precision without scales.
        seen: statistics of the activations; None if there are no samples.
    """

    def make(folder: Path) -> TypedModel:
        return typed_graph(folder, model, target, table, seen)

    statistics = None
    if seen is not None:
        statistics = [
            dict(sorted(seen.ranges.items())),
            dict(sorted(seen.masks.items())),
            dict(sorted(seen.sizes.items())),
            seen.digest,
            seen.correction,
            dict(sorted(seen.spoiled.items())),
        ]
    key = {
        "model": model.digest,
        "target": asdict(target),
        "table": dict(sorted(table.scales.items())) if table else None,
        "seen": statistics,
        **versions("onnx", "onnx-ir"),
    }
    return run.store.stage("precision", key, TypedModel, make, _count_line)


def typed_graph(
    folder: Path, model: OnnxModel, target: Target, table: CalibrationTable | None, seen: Observation | None
) -> TypedModel:
    """Write `typed.onnx` into `folder`, with the arguments of `set_precision`."""
    from trtopt.graph.file import describe, load_ir
    from trtopt.graph.portable import for_onnxruntime
    from trtopt.graph.prepare import check_types, save
    from trtopt.precision import precision

    graph = load_ir(model.path)
    decisions = precision(target.precision).apply(graph, request(graph, target, table, seen))
    for_onnxruntime(graph)
    path = folder / "typed.onnx"
    save(graph, path)
    check_types(path)
    return TypedModel(onnx=describe(path), precision=target.precision, rest=target.rest, decisions=decisions)


def request(graph: ir.Model, target: Target, table: CalibrationTable | None, seen: Observation | None) -> Request:
    """Return what a precision needs to know of a prepared graph, with the arguments of `set_precision`."""
    from trtopt.precision import Request
    from trtopt.precision.passes.wanted import resolve

    means, errors = _read_means(seen) if seen else ({}, {})
    return Request(
        rest=target.rest,
        keep=resolve(graph, target.keep, target.only),
        table=table,
        ranges=seen.ranges if seen else {},
        masks=seen.masks if seen else {},
        sizes=seen.sizes if seen else {},
        means=means,
        errors=errors,
        spoiled=seen.spoiled if seen else None,
    )


def _read_means(seen: Observation) -> tuple[Means, Means]:
    """Return the data for bias correction, by tensor and axis: the means and the mean rounding errors per channel.

    Either is empty if the correction does not use it.
    """
    import numpy as np

    if not seen.correction:
        return {}, {}
    means: Means = {}
    errors: Means = {}
    with np.load(seen.means, allow_pickle=False) as archive:
        for i, key in enumerate(zip(archive["names"].tolist(), archive["axes"].tolist(), strict=True)):
            means[key] = archive[str(i)]
            if seen.correction != "weights" and f"{i} rounding" in archive:
                errors[key] = archive[f"{i} rounding"]
    return means, errors


def _count_line(typed: TypedModel) -> str:
    return ", ".join(f"{counted(count, 'node')} in {name}" for name, count in sorted(typed.counts().items()))
