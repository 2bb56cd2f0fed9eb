"""What INT8 and FP8 share: quantize the inputs that `placement` names, correct biases, and cast the rest.

Touches: the model it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.errors import TableError, UsageError
from trtopt.precision import Request, bias, half, qdq
from trtopt.precision.graph import constant, drop_unused_initializers, names
from trtopt.precision.keep import keep
from trtopt.precision.placement import Placement, Site, place
from trtopt.types import CalibrationTable, Decision

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.generic]


def apply(model: ir.Model, request: Request, format: qdq.Format) -> tuple[Decision, ...]:
    """Quantize in place with the scales of `request.table`; see `placement` for what, and why the rest is not.

    Raises:
        TableError: there is no table, or a scale is missing in it.
        UsageError: `request.rest` is unknown.
    """
    if request.table is None:
        raise TableError(
            f"{format.name.upper()} needs a calibration table", fix="Give --calib DATA or --calib-table FILE"
        )
    placement = place(model)
    kept = _kept(model, placement, request)
    # Before the casts: weights are quantized from their FP32 values, and biases corrected in FP32.
    weights = {site: _weight(site) for site in placement.sites if site.axis is not None}
    taken = names(model.graph)
    notes: dict[str, str] = {}
    for site, weight in weights.items():
        dtype = _type_of(site.node, request.rest, kept)
        rounded = bias.Rounded(weight, qdq.code_weight(weight, site.axis or 0, dtype, format).values())
        notes[site.node.name or ""] = bias.correct(site.node, rounded, request.means, request.errors, taken)
    decisions = _rest(model, request, kept)
    quantized: dict[object, ir.Value] = {}
    taken = names(model.graph)
    for site in placement.sites:
        value = site.node.inputs[site.index]
        assert value is not None
        key = (value, site.axis)
        if key not in quantized and site.axis is None:
            scale = _scale(placement, site, request.table, format)
            quantized[key] = qdq.quantize_activation(value, scale, taken, format)
        elif key not in quantized and site.axis is not None:
            coded = qdq.code_weight(weights[site], site.axis, value.dtype or ir.DataType.FLOAT, format)
            quantized[key] = qdq.quantize_weight(site.node, value, coded, site.axis, taken, format)
        site.node.replace_input_with(site.index, quantized[key])
    drop_unused_initializers(model.graph)
    model.graph.sort()
    placed = {decision.node: decision for decision in placement.decisions(format.name, request.rest)}
    return tuple(_decide(decision, placed.get(decision.node, decision), notes) for decision in decisions)


def _kept(model: ir.Model, placement: Placement, request: Request) -> dict[ir.Node, str]:
    """Return the nodes that stay in FP32 beside a 16-bit rest, each with the reason."""
    if request.rest not in half.HALVES:
        return {}
    # A tensor reached at least what its scale represents, also where the samples that were observed are fewer, or none.
    scales = request.table.scales if request.table else {}
    ranges = {name: scale * qdq.INT8.max for name, scale in scales.items()}
    for site in placement.sites:
        value = site.node.inputs[site.index]
        if site.axis is None and value is not None and site.scale_from in ranges:
            ranges[value.name or ""] = ranges[site.scale_from]
    ranges |= {name: max(seen, ranges.get(name, 0.0)) for name, seen in request.ranges.items()}
    return keep(model, half.HALVES[request.rest], ranges, request.sizes)


def _rest(model: ir.Model, request: Request, kept: Mapping[ir.Node, str]) -> tuple[Decision, ...]:
    if request.rest in half.HALVES:
        return half.convert(model, half.HALVES[request.rest], kept)
    if request.rest == "fp32":
        from trtopt.precision import fp32

        return fp32.apply(model, request)
    raise UsageError(f"unknown type {request.rest!r} for the unquantized rest", fix="Choose fp16, bf16 or fp32")


def _weight(site: Site) -> qdq.FloatArray:
    return np.asarray(constant(site.node.inputs[site.index]), np.float32)


def _type_of(node: ir.Node, rest: str, kept: Mapping[ir.Node, str]) -> ir.DataType:
    """Return the type of the node's tensors after the casts, which is that of their scales."""
    import onnx_ir as ir

    return ir.DataType.FLOAT if rest not in half.HALVES or node in kept else half.HALVES[rest].dtype


def rounding_errors(model: ir.Model, request: Request, format: qdq.Format) -> dict[str, Callable[[Array], Array]]:
    """For each activation that `apply` would quantize, a function that gives what rounding adds to its values.

    Values that are clipped are not rounded.

    Raises:
        TableError: a scale is missing.
    """
    assert request.table is not None
    placement = place(model)
    kept = _kept(model, placement, request)
    scales: dict[str, float] = {}
    for site in placement.sites:
        value = site.node.inputs[site.index]
        if site.axis is None and value is not None:
            scale = np.float32(_scale(placement, site, request.table, format))
            scales[value.name or ""] = float(qdq.round_scale(scale, _type_of(site.node, request.rest, kept)))
    return {name: partial(qdq.rounding_error, scale=scale, format=format) for name, scale in scales.items()}


def _scale(placement: Placement, site: Site, table: CalibrationTable, format: qdq.Format) -> float:
    try:
        scale = max(table.scales[tensor] for tensor in placement.group(site.scale_from))
    except KeyError as error:
        raise TableError(
            f"the calibration table has no scale for {error.args[0]}",
            why=f"it was made by {table.method} over other tensors",
            fix="Calibrate again with --calib",
        ) from None
    return scale * qdq.INT8.max / format.max


def _decide(rest: Decision, placed: Decision, notes: Mapping[str, str]) -> Decision:
    """Of a node's two decisions: quantized stands first, then a remark on its type, then why it is not quantized."""
    if placed.precision in ("int8", "fp8"):
        return replace(placed, reason=placed.reason + notes.get(placed.node, ""))
    return rest if rest.reason != half.ASKED_FOR else replace(placed, precision=rest.precision)
