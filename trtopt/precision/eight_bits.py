"""What INT8 and FP8 share: quantize the inputs that `placement` names, correct biases, and cast the rest.

Touches: the model it is given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trtopt.errors import TableError, UsageError
from trtopt.precision import Request, bias, half, qdq
from trtopt.precision.graph import constant, drop_unused_initializers, names
from trtopt.precision.keep import keep
from trtopt.precision.placement import Placement, Site, place
from trtopt.types import CalibrationTable, Decision

if TYPE_CHECKING:
    import onnx_ir as ir


def apply(model: ir.Model, request: Request, format: qdq.Format) -> tuple[Decision, ...]:
    """Quantize in place with the scales of `request.table`; see `placement` for what, and why the rest is not.

    Raises:
        TableError: there is no table, or a scale is missing in it.
        UsageError: `request.rest` is unknown.
    """
    import onnx_ir as ir

    if request.table is None:
        raise TableError(
            f"{format.name.upper()} needs a calibration table", fix="Give --calib DATA or --calib-table FILE"
        )
    placement = place(model)
    # Before the casts: weights are quantized from their FP32 values, and biases corrected in FP32.
    weights = {site: _weight(site) for site in placement.sites if site.axis is not None}
    rest = half.HALVES[request.rest].dtype if request.rest in half.HALVES else ir.DataType.FLOAT
    taken = names(model.graph)
    corrected = set()
    for site, weight in weights.items():
        error = weight - qdq.code_weight(weight, site.axis or 0, rest, format).values()
        if bias.correct(site.node, error, request.means, taken):
            corrected.add(site.node.name)
    decisions = _rest(model, request)
    quantized: dict[object, ir.Value] = {}
    taken = names(model.graph)
    for site in placement.sites:
        value = site.node.inputs[site.index]
        assert value is not None
        key = (value, site.axis)
        if key not in quantized and site.axis is None:
            scale = _shared_scale(placement, site, request.table) * qdq.INT8.max / format.max
            quantized[key] = qdq.quantize_activation(value, scale, taken, format)
        elif key not in quantized and site.axis is not None:
            coded = qdq.code_weight(weights[site], site.axis, value.dtype or ir.DataType.FLOAT, format)
            quantized[key] = qdq.quantize_weight(site.node, value, coded, site.axis, taken, format)
        site.node.replace_input_with(site.index, quantized[key])
    drop_unused_initializers(model.graph)
    model.graph.sort()
    placed = {decision.node: decision for decision in placement.decisions(format.name, request.rest)}
    return tuple(_decide(decision, placed.get(decision.node, decision), corrected) for decision in decisions)


def _rest(model: ir.Model, request: Request) -> tuple[Decision, ...]:
    if request.rest in half.HALVES:
        kind = half.HALVES[request.rest]
        # A tensor reached at least what its scale represents: a table read from a cache tells no more than that.
        scales = request.table.scales if request.table else {}
        ranges = {name: scale * qdq.INT8.max for name, scale in scales.items()} | dict(request.ranges)
        return half.convert(model, kind, keep(model, kind, ranges, request.sizes))
    if request.rest == "fp32":
        from trtopt.precision import fp32

        return fp32.apply(model, request)
    raise UsageError(f"unknown type {request.rest!r} for the unquantized rest", fix="Choose fp16, bf16 or fp32")


def _weight(site: Site) -> qdq.FloatArray:
    return np.asarray(constant(site.node.inputs[site.index]), np.float32)


def _shared_scale(placement: Placement, site: Site, table: CalibrationTable) -> float:
    try:
        return max(table.scales[tensor] for tensor in placement.group(site.scale_from))
    except KeyError as error:
        raise TableError(
            f"the calibration table has no scale for {error.args[0]}",
            why=f"it was made by {table.method} over other tensors",
            fix="Calibrate again with --calib",
        ) from None


def _decide(rest: Decision, placed: Decision, corrected: set[str | None]) -> Decision:
    """Of a node's two decisions: quantized stands first, then a remark on its type, then why it is not quantized."""
    if placed.precision in ("int8", "fp8"):
        return replace(placed, reason=placed.reason + bias.NOTE) if placed.node in corrected else placed
    return rest if rest.reason != half.ASKED_FOR else replace(placed, precision=rest.precision)
