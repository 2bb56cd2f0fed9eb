"""The common part of INT8 and FP8: Q/DQ pairs at the sites of `placement`, bias correction, casts of the other nodes.

Touches: the model it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.table import LEVELS
from trtopt.errors import TableError, UsageError
from trtopt.formats import Format
from trtopt.graph.query import constant, drop_unused_initializers, names
from trtopt.precision import Request, formats
from trtopt.precision.passes import bias, given, half, qdq, saturate
from trtopt.precision.passes.keep import keep
from trtopt.precision.passes.placement import Placement, Site, place
from trtopt.types import CalibrationTable, Decision

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[np.generic]


Attach = Callable[["ir.Node", "ir.Node", int, "ir.Value | None"], None]
"""(quantized node, reader, index of the input, what it read in FP32): called after the reader's input was replaced."""


def apply(model: ir.Model, request: Request, format: Format, attach: Attach = lambda *_: None) -> tuple[Decision, ...]:
    """Quantize the inputs that `placement` selects, in place, and cast the other nodes to the fallback precision.

    A model that is quantized already keeps its Q/DQ nodes, and needs no table.

    Args:
        model: the FP32 model.
        request: the options.
        format: the 8-bit type.
        attach: called for every input that quantization replaces, biases included.

    Returns:
        A decision for each node that does arithmetic.

    Raises:
        TableError: the request has no table, or the table lacks a scale.
        UsageError: the fallback precision, `request.rest`, is unknown.
    """
    if given.is_quantized(model.graph):
        half_type = formats(16).get(request.rest)
        kept = keep(model, half_type, request) if half_type else {}
        return given.apply(model, lambda: _cast_to_fallback(model, request, kept))
    if request.table is None:
        raise TableError(
            f"{format.name.upper()} needs a calibration table", fix="Give --calib DATA or --calib-table FILE"
        )
    placement = place(model, request.keep)
    kept = _kept(model, placement, request)
    # Before the casts to 16 bits: weights are quantized from their FP32 values, and biases corrected in FP32.
    taken = names(model.graph)
    coded: dict[Site, qdq.Coded] = {}
    notes: dict[str, str] = {}
    for site in placement.sites:
        if site.axis is None:
            continue
        weight = _weight(site)
        coded[site] = qdq.code_weight(weight, site.axis, _dtype(site.node, request.rest, kept), format)
        rounded = bias.Rounded(weight, coded[site].values())
        notes[site.node.name or ""] = bias.correct(
            site.node, rounded, request.means, request.errors, taken, partial(attach, site.node)
        )
    # After this the tensors have the types that their scales must have, too.
    decisions = _cast_to_fallback(model, request, kept)
    quantized: dict[object, ir.Value] = {}
    relus: saturate.Relus = {}
    taken = names(model.graph)
    for site in placement.sites:
        value = site.node.inputs[site.index]
        assert value is not None
        # One pair per tensor, shared by its consumers (rule 9). A weight may be read along different axes.
        key = (value, site.axis)
        if key not in quantized and site.axis is None:
            scale = _scale(placement, site, request.table, format)
            source = saturate.unclipped(value, scale, format, relus, taken)
            quantized[key] = qdq.quantize_activation(source, scale, taken, format)
        elif key not in quantized and site.axis is not None:
            quantized[key] = qdq.quantize_weight(site.node, value, coded[site], site.axis, taken, format)
        site.node.replace_input_with(site.index, quantized[key])
        attach(site.node, site.node, site.index, value)
    decisions = saturate.absorb(relus, decisions)
    drop_unused_initializers(model.graph)
    model.graph.sort()
    placed = {decision.node: decision for decision in placement.decisions(format.name, request.rest)}
    return tuple(_merge(decision, placed.get(decision.node, decision), notes) for decision in decisions)


def _kept(model: ir.Model, placement: Placement, request: Request) -> dict[ir.Node, str]:
    """Return the nodes that stay in FP32 beside a 16-bit fallback precision, each with the reason."""
    if request.rest not in formats(16):
        return {}
    # A tensor's absmax is at least its amax, also where fewer samples were observed than calibrated on, or none.
    scales = request.table.scales if request.table else {}
    ranges = {name: scale * LEVELS for name, scale in scales.items()}
    for site in placement.sites:
        value = site.node.inputs[site.index]
        if site.axis is None and value is not None and site.scale_from in ranges:
            ranges[value.name or ""] = ranges[site.scale_from]
    ranges |= {name: max(observed, ranges.get(name, 0.0)) for name, observed in request.ranges.items()}
    return keep(model, formats(16)[request.rest], replace(request, ranges=ranges))


def _cast_to_fallback(model: ir.Model, request: Request, kept: Mapping[ir.Node, str]) -> tuple[Decision, ...]:
    """Cast every node but the kept ones to the fallback precision, in place; return a decision for each node."""
    if request.rest in formats(16):
        return half.convert(model, formats(16)[request.rest], kept, request.masks)
    if request.rest == "fp32":
        from trtopt.precision import fp32

        return fp32.apply(model, request)
    raise UsageError(f"unknown fallback precision {request.rest!r}", fix="Choose fp16, bf16 or fp32")


def _weight(site: Site) -> qdq.FloatArray:
    return np.asarray(constant(site.node.inputs[site.index]), np.float32)


def _dtype(node: ir.Node, precision: str, kept: Mapping[ir.Node, str]) -> ir.DataType:
    """Return the data type of the node's tensors after the casts, which is that of their scales, too."""
    import onnx_ir as ir

    return ir.DataType.FLOAT if precision not in formats(16) or node in kept else formats(16)[precision].dtype


def rounding_errors(model: ir.Model, request: Request, format: Format) -> dict[str, Callable[[Array], Array]]:
    """Return for each activation that `apply` quantizes a function from its values to their rounding errors.

    The function returns 0 for values that are clipped (see `qdq.rounding_error`).

    Raises:
        TableError: the table lacks a scale.
    """
    assert request.table is not None
    placement = place(model, request.keep)
    kept = _kept(model, placement, request)
    scales: dict[str, float] = {}
    for site in placement.sites:
        value = site.node.inputs[site.index]
        if site.axis is None and value is not None:
            scale = np.float32(_scale(placement, site, request.table, format))
            scales[value.name or ""] = float(qdq.round_scale(scale, _dtype(site.node, request.rest, kept)))
    return {name: partial(qdq.rounding_error, scale=scale, format=format) for name, scale in scales.items()}


def _scale(placement: Placement, site: Site, table: CalibrationTable, format: Format) -> float:
    """Return the scale of an activation: the largest of its group's, converted from INT8's to the format's maximum."""
    try:
        scale = max(table.scales[tensor] for tensor in placement.group(site.scale_from))
    except KeyError as error:
        raise TableError(
            f"the calibration table has no scale for {error.args[0]}",
            why=f"it was calibrated with {table.method} over other tensors",
            fix="Calibrate again with --calib",
        ) from None
    return scale * LEVELS / format.max


def _merge(fallback: Decision, placed: Decision, notes: Mapping[str, str]) -> Decision:
    """Merge a node's two decisions: quantization first, then a reason for its type, then why it is not quantized.

    Args:
        fallback: its type in the fallback precision, with the reason if that is FP32.
        placed: whether it is quantized, and why.
        notes: notes on bias correction by node name.
    """
    if placed.precision in formats(8):
        return replace(placed, reason=placed.reason + notes.get(placed.node, ""))
    if fallback.reason != half.REQUESTED:
        return fallback
    return replace(placed, precision=fallback.precision)
