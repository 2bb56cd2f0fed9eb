"""Two forms of one typed graph: what onnxruntime computes right in its default options, and what TensorRT fuses best.

onnxruntime changes a QuantizeLinear and what is before it in ways that alter the result:

- Up to 1.29, a QuantizeLinear of FP16 values truncates instead of rounding.
- `WeightBiasQuantization` quantizes the bias of a Conv or Gemm before a QuantizeLinear with the product of two FP16
  scales, which underflows: an output SQNR of 55 dB became 7 dB.
- `ReluQuantFusion` drops every Relu before a QuantizeLinear to FP8, and a Clip before one fails in `ClipQuantFusion`.

So a typed graph quantizes 16-bit values to INT8 through a Cast to FP32, which is exact, with the same scale in FP32. To
FP8 it quantizes through a Max of one input, which is the identity. The fusions do not look behind those. TensorRT is
given the graph without them: it fuses a QuantizeLinear with the layer right before it.

TensorRT for RTX 1.7 cannot build a recurrent operator in FP32 over two steps or more whose input is cast from 16 bits.
It is given a Max of two equal inputs in between, which no fusion crosses.

Touches: the onnx-ir model it is given; `write_for_tensorrt` writes a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtopt.errors import ModelError
from trtopt.graph.query import (
    FLOAT_COMPUTE_FREE,
    add_initializer,
    constant,
    drop_unused_initializers,
    names,
    producer,
    unique,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_HALVES = ("FLOAT16", "BFLOAT16")


def for_onnxruntime(model: ir.Model) -> None:
    """Rewrite, in place, each QuantizeLinear that onnxruntime would compute differently or fuse wrongly."""
    taken = names(model.graph)
    for node in list(_quantizers(model.graph)):
        if node.outputs[0].dtype is not None and node.outputs[0].dtype.name.startswith("FLOAT8"):
            _read_through(node, "Max", {}, taken)
        elif _is_half(node.inputs[0]) and constant(node.inputs[1]) is not None:
            _widen(node, taken)


def for_tensorrt(model: ir.Model) -> bool:
    """Rewrite a typed graph, in place, for a strongly typed TensorRT, and return whether anything changed."""
    changed, taken = undo(model), names(model.graph)
    for node in list(model.graph):
        if node.op_type in _RECURRENT and _is_cast_from_half(node.inputs[0]):
            _read_through(node, "Max", {}, taken, twice=True)
            changed = True
    return changed


def undo(model: ir.Model) -> bool:
    """Undo `for_onnxruntime` in place, and return whether there was anything to undo."""
    changed = False
    for node in list(_quantizers(model.graph)):
        before = producer(node.inputs[0])
        if before is None or before.op_type not in ("Cast", "Max") or len(before.inputs) != 1:
            continue
        scale = node.inputs[1]
        if before.op_type == "Cast":
            scale = _half_scale(node) if _is_half(before.inputs[0]) else None
        if scale is None:
            continue
        node.replace_input_with(0, before.inputs[0])
        node.replace_input_with(1, scale)
        if not before.outputs[0].uses() and not before.outputs[0].is_graph_output():
            model.graph.remove(before, safe=True)
        changed = True
    drop_unused_initializers(model.graph)
    return changed


def write_for_tensorrt(path: Path, folder: Path, opset: int) -> Path:
    """Return the path of a form of a typed graph that TensorRT reads: `path` itself, or a file written to `folder`.

    Args:
        path: the typed graph.
        folder: where to write.
        opset: the newest that the parser reads.

    Raises:
        ModelError: a node has no form in that opset.
    """
    from trtopt.graph.file import load_ir, load_proto
    from trtopt.graph.file import opset as opset_of
    from trtopt.graph.older import lower_opset
    from trtopt.graph.prepare import infer_shapes, save

    try:
        proto = load_proto(path)
        is_newer = opset_of(proto) > opset
        if not is_newer and not any(node.op_type in {"QuantizeLinear", *_RECURRENT} for node in proto.graph.node):
            return path
    except ModelError:  # TensorRT's parser says what is wrong with it
        return path
    model = load_ir(path)
    infer_shapes(model)
    if not for_tensorrt(model) and not is_newer:
        return path
    lower_opset(model, opset)
    target = folder / "tensorrt.onnx"
    save(model, target)
    return target


def _quantizers(graph: ir.Graph) -> Iterator[ir.Node]:
    return (node for node in graph if node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx"))


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.name in _HALVES


def _is_cast_from_half(value: ir.Value | None) -> bool:
    """Return whether a value, or a part of it, was cast from 16 bits and at most moved since."""
    todo, visited = [value], set()
    while todo:
        node = producer(todo.pop())
        if node is None or node in visited or node.op_type not in FLOAT_COMPUTE_FREE:
            continue
        if node.op_type == "Cast" and _is_half(node.inputs[0]):
            return True
        visited.add(node)
        todo += node.inputs
    return False


def _widen(node: ir.Node, taken: set[str]) -> None:
    """Make a QuantizeLinear read a float32 copy of its input, with its scale in float32."""
    import onnx_ir as ir

    graph, scale = node.graph, node.inputs[1]
    assert isinstance(graph, ir.Graph)
    assert scale is not None
    array = constant(scale)
    assert array is not None
    name = unique(f"{scale.name}/fp32", taken)
    wide = add_initializer(graph, name, array.astype(np.float32), ir.DataType.FLOAT)
    node.replace_input_with(1, wide)
    _read_through(node, "Cast", {"to": int(ir.DataType.FLOAT)}, taken)


def _read_through(node: ir.Node, op: str, attributes: dict[str, int], taken: set[str], *, twice: bool = False) -> None:
    """Insert a node with one output between a node and its first input, which the inserted one may read twice."""
    import onnx_ir as ir

    value, graph = node.inputs[0], node.graph
    assert value is not None
    assert isinstance(graph, ir.Graph)
    dtype = ir.TensorType(ir.DataType.FLOAT) if op == "Cast" else value.type
    result = ir.Value(name=unique(f"{value.name}/{op.lower()}", taken), type=dtype, shape=value.shape)
    name = unique(f"{node.name}/{op}", taken)
    graph.insert_before(
        node, ir.node(op, [value, value] if twice else [value], attributes, outputs=[result], name=name)
    )
    node.replace_input_with(0, result)


def _half_scale(node: ir.Node) -> ir.Value | None:
    """Return the 16-bit scale that all dequantizers of a QuantizeLinear share, if it equals the quantizer's own."""
    scales = {reader.inputs[1] for reader, _ in node.outputs[0].uses() if reader.op_type == "DequantizeLinear"}
    own, other = constant(node.inputs[1]), next(iter(scales), None)
    array = constant(other)
    if len(scales) != 1 or own is None or array is None or not _is_half(other):
        return None
    return other if np.array_equal(array.astype(np.float32), own) else None
