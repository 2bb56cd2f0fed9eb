"""Attributes that are written with their default values, because ONNX's shape inference is wrong without them.

It takes a spectrum for two-sided unless STFT says otherwise, and fails on MeanVarianceNormalization without axes.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_DEFAULTS: dict[str, tuple[str, int | list[int]]] = {
    "MeanVarianceNormalization": ("axes", [0, 2, 3]),
    "STFT": ("onesided", 1),
}


def state_defaults(model: ir.Model) -> None:
    """Write the default values into the nodes of a model, in place."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        if node.op_type in _DEFAULTS and node.domain in ("", "ai.onnx"):
            name, value = _DEFAULTS[node.op_type]
            if name not in node.attributes:
                node.attributes[name] = ir.convenience.convert_attribute(name, value)


def with_defaults(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the default values in its main graph: a copy, or the model itself if it needs none."""
    import onnx

    from trtopt.graph.parsed import own

    def lacks(node: onnx.NodeProto) -> bool:
        return node.op_type in _DEFAULTS and _DEFAULTS[node.op_type][0] not in {entry.name for entry in node.attribute}

    if not any(map(lacks, proto.graph.node)):
        return proto
    copied = own(proto)
    for node in filter(lacks, copied.graph.node):
        node.attribute.append(onnx.helper.make_attribute(*_DEFAULTS[node.op_type]))
    return copied
