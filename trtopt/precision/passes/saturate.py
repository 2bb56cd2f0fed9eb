"""Clip(0, c) before a QuantizeLinear that saturates at c, written as Relu: identical numbers, and TensorRT fuses it.

TensorRT fuses a Relu into the convolution before it. A Clip before a QuantizeLinear became a layer of its own, and the
wrong one: an EfficientNet-Lite0 in INT8 had an output SQNR of -2.6 dB with its ReLU6 as Clip, and of 20.9 dB with Relu
(TensorRT 8.5.3.1 on an H100).

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trtopt.formats import Format
from trtopt.graph.query import constant, producer, unique
from trtopt.precision.passes import qdq
from trtopt.types import Decision

if TYPE_CHECKING:
    import onnx_ir as ir

Relus = dict["ir.Node", "ir.Node"]
"""The Relu that was added beside each Clip."""

REASON = "Clip written as Relu: the quantization after it saturates at the same value"


def unclipped(value: ir.Value, scale: float, format: Format, relus: Relus, taken: set[str]) -> ir.Value:
    """Return a tensor that has the same codes as `value`: the output of a Relu in place of a Clip, or `value` itself.

    The Clip stays for its other consumers; `absorb` removes it if there are none.

    Args:
        value: the tensor to quantize.
        scale: its scale, before it is rounded to the type of `value`.
        format: the 8-bit type.
        relus: receives the Relu that is added.
        taken: the names in use in the graph; the new ones are added.
    """
    import onnx_ir as ir

    clip = producer(value)
    if clip is None or not _saturates(clip, scale, value, format):
        return value
    assert isinstance(value.graph, ir.Graph)
    if clip not in relus:
        output = ir.Value(name=unique(f"{value.name}/relu", taken), type=value.type, shape=value.shape)
        relus[clip] = ir.node("Relu", [clip.inputs[0]], outputs=[output], name=unique(f"{clip.name}/Relu", taken))
        value.graph.insert_after(clip, relus[clip])
    return relus[clip].outputs[0]


def absorb(relus: Relus, decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Remove the Clips that nothing reads any more, and return the decisions with those about the Relus.

    The Relu takes over the name of a removed Clip. Its output has another name: its values differ above c.
    """
    changed: dict[str, list[Decision]] = {}
    by_node: Mapping[str, Decision] = {decision.node: decision for decision in decisions}
    for clip, relu in relus.items():
        name = clip.name or ""
        kept = [by_node[name]]
        if not clip.outputs[0].uses() and not clip.outputs[0].is_graph_output():
            assert clip.graph is not None
            clip.graph.remove(clip, safe=True)
            relu.name, kept = name, []
        changed[name] = [*kept, replace(by_node[name], node=relu.name or "", op="Relu", reason=REASON)]
    return tuple(new for decision in decisions for new in changed.get(decision.node, [decision]))


def _saturates(node: ir.Node, scale: float, value: ir.Value, format: Format) -> bool:
    """Return whether `node` is a Clip(0, c) and the codes of c and of all larger numbers are equal."""
    import onnx_ir as ir

    if node.op_type != "Clip" or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return False
    low, high = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if low is None or low.size != 1 or float(low.reshape(-1)[0]) != 0.0:
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True  # Clip(0, inf) is a Relu
    if high is None or high.size != 1:
        return False
    rounded = qdq.round_scale(np.float32(scale), value.dtype or ir.DataType.FLOAT)
    return (
        float(qdq.quantize(np.asarray(high, np.float32).reshape(()), rounded, format).astype(np.float32)) == format.max
    )
