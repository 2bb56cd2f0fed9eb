"""Layers of a built engine, and what did not fuse: reformats, Q and DQ on their own, pointwise operators on their own.

Each costs a pass over memory that a fused layer does not need.

    Reformatting CopyNode for Input Tensor 0 to conv    a copy into another layout or type
    x/QuantizeLinear_quantize_scale_node                a Q that is not fused with the layer before it
    PWN(mul)                                            a pointwise operator that is not fused with a convolution

Touches: reads the typed graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.types import EngineLayer, LayerTimes, TypedModel
from trtopt.wording import counted

if TYPE_CHECKING:
    from onnx import NodeProto

_POINTWISE = re.compile(r"PointWise|ElementWise|Unary|Activation", re.IGNORECASE)
_QUANTIZE = re.compile(r"(?<!De)QuantizeLinear|(?<!de)quantize_scale_node")
_DEQUANTIZE = re.compile(r"DequantizeLinear|dequantize_scale_node")
_Q_OR_DQ = re.compile(r".+?/(?:Quantize|Dequantize)Linear")
_APART = ("reformat", "Q", "DQ", "pointwise")
_COPIES = re.compile(r"Reformat|NoOp|Copy", re.IGNORECASE)


def engine_layers(layers: Sequence[Mapping[str, Any]], typed: TypedModel) -> tuple[EngineLayer, ...]:
    """Return the layers of an engine, in the order of their execution, from the engine inspector's JSON.

    A layer of weights alone, which runs when the engine is built, is not among them in any version.
    """
    from trtopt.engine.trt.weak import named, precision_of

    names = {decision.node for decision in typed.decisions}
    pairs = _pairs(typed.onnx.path) if any(_pair(str(layer.get("Name", ""))) for layer in layers) else {}
    found = []
    for layer in layers:
        name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
        nodes = tuple(dict.fromkeys(named(name, names)))
        copies = bool(_COPIES.search(kind)) or name.startswith("Reformatting CopyNode")
        found.append(
            EngineLayer(
                name=name,
                type=kind,
                precision=precision_of(layer),
                tactic=str(layer.get("TacticName", "")),
                nodes=_beside(name, names) if copies else nodes or pairs.get(_pair(name), ()),
                apart=_apart(name, kind, nodes, copies=copies),
            )
        )
    return tuple(found)


def unfused(layers: Sequence[EngineLayer]) -> str:
    """Return a sentence that counts the layers that did not fuse; empty if all did."""
    counts = {kind: sum(layer.apart == kind for layer in layers) for kind in _APART}
    parts = [counted(count, f"{kind} layer") for kind, count in counts.items() if count]
    return f"not fused: {', '.join(parts)}, of {counted(len(layers), 'layer')}" if parts else ""


def unfused_time(layers: Sequence[EngineLayer], times: LayerTimes) -> str:
    """Return a sentence about the time that the layers take that did not fuse.

    As a share of the sum of all layers: layers that are timed take longer than the engine as a whole.
    """
    of_kind = {kind: sum(times.ms.get(layer.name, 0.0) for layer in layers if layer.apart == kind) for kind in _APART}
    total, apart = sum(times.ms.get(layer.name, 0.0) for layer in layers), sum(of_kind.values())
    if not apart:
        return f"layers timed at batch {times.batch}; none that did not fuse takes time"
    parts = ", ".join(f"{kind} {100 * ms / total:.1f} %" for kind, ms in of_kind.items() if ms)
    share = f"{100 * apart / total:.1f} % of the time of all layers at batch {times.batch}"
    return f"layers that did not fuse take {share}: {parts}"


def _apart(name: str, kind: str, nodes: Sequence[str], *, copies: bool) -> str:
    """Return what a layer is that could be a part of another one; empty for a layer with work of its own."""
    if copies:
        return "reformat"
    if not nodes and _DEQUANTIZE.search(name):
        return "DQ"
    if not nodes and _QUANTIZE.search(name):
        return "Q"
    return "pointwise" if name.startswith("PWN(") or _POINTWISE.search(kind) else ""


def _pair(name: str) -> str:
    """Return the Q or DQ node that a layer's name begins with; empty if it does not."""
    found = _Q_OR_DQ.match(name)
    return found[0] if found else ""


def _pairs(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the nodes that each Q and DQ of a graph is for, by its name: those that read the dequantized values."""
    from trtopt.graph.file import load_proto

    nodes = load_proto(path).graph.node
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)

    def behind(node: NodeProto) -> Iterator[str]:
        for reader in readers.get(node.output[0], []):
            if reader.op_type == "DequantizeLinear":
                yield from behind(reader)
            else:
                yield reader.name

    kinds = ("QuantizeLinear", "DequantizeLinear")
    return {node.name: tuple(dict.fromkeys(behind(node))) for node in nodes if node.op_type in kinds}


def _beside(name: str, names: set[str]) -> tuple[str, ...]:
    """Return the nodes beside a reformat, which its name ends with."""
    from trtopt.engine.trt.weak import named

    return tuple(dict.fromkeys(named(name.rpartition(" to ")[2] or name, names)))
