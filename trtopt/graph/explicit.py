"""Parts that a file may leave to its readers: ONNX's checker asks for them, onnxruntime and TensorRT do not.

Outputs may lack their types and shapes, as tools write them that add an output to a graph. Nodes may be in any order,
and may call the default domain `ai.onnx`. The graph may have no name.

Touches: the message it is given.
"""

from __future__ import annotations

import contextlib
import graphlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_ALIAS = "ai.onnx"


def make_explicit(proto: onnx.ModelProto) -> bool:
    """Add what is left out, in place, and return whether there was anything. What ONNX cannot infer stays as it is."""
    changed = _named(proto.graph)
    changed |= _sorted(proto.graph)
    for entry in proto.opset_import:
        if entry.domain == _ALIAS:
            entry.domain = ""
    changed |= _in_default_domain(proto.graph)
    return changed | _typed(proto)


def for_checker(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy for ONNX's checker, which cannot find external data without the path of the model.

    Such weights are empty in the copy. Outputs of unknown rank have the shape of a scalar.
    """
    import onnx
    from onnx.external_data_helper import _get_all_tensors

    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    for output in copied.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.shape.SetInParent()
    for tensor in _get_all_tensors(copied):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.dims[:] = [0]
    return copied


def _named(graph: onnx.GraphProto) -> bool:
    if graph.name or not graph.node:
        return False
    graph.name = "graph"
    return True


def _sorted(graph: onnx.GraphProto) -> bool:
    """Bring the nodes into an order in which each one follows those that it reads; a graph with a cycle stays."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = {index: {makers[name] for name in _reads(node) & makers.keys()} for index, node in enumerate(graph.node)}
    if all(max(before, default=-1) < index for index, before in needs.items()):
        return False
    with contextlib.suppress(graphlib.CycleError):
        order = list(graphlib.TopologicalSorter(needs).static_order())
        nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
        for index, source in enumerate(order):
            graph.node[index].CopyFrom(nodes[source])
        return True
    return False


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, also in its subgraphs."""
    inner = [subgraph for attribute in node.attribute for subgraph in (attribute.g, *attribute.graphs)]
    return {*node.input, *(name for subgraph in inner for each in subgraph.node for name in _reads(each))}


def _in_default_domain(graph: onnx.GraphProto) -> bool:
    """Replace the alias in the nodes of a graph and its subgraphs."""
    changed = False
    for node in graph.node:
        if node.domain == _ALIAS:
            node.domain, changed = "", True
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                changed |= _in_default_domain(subgraph)
    return changed


def _typed(proto: onnx.ModelProto) -> bool:
    """Add the types and shapes of outputs."""
    import onnx

    from trtopt.graph.defaults import with_defaults

    if not any(map(_lacks, proto.graph.output)):
        return False
    with contextlib.suppress(Exception):  # it has several kinds for a malformed graph, which the checker explains
        inferred = onnx.shape_inference.infer_shapes(with_defaults(proto)).graph.output
        for output, found in zip(proto.graph.output, inferred, strict=True):
            output.CopyFrom(found)
    return True


def _lacks(output: onnx.ValueInfoProto) -> bool:
    """Return whether an output has no type, or is a tensor without a shape."""
    kind = output.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not output.type.tensor_type.HasField("shape"))
